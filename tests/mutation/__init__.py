"""Mutation: deliberate mistakes in the pure core, one at a time, to see whether the tests notice.

    make mutate                                        a sample of all mistakes, and those of holes.toml
    make mutate ARGS="--all --module retinue.core.pipeline.edge"
    make mutate ARGS="--holes"                         only those of holes.toml
    make mutate ARGS="--again"                         those that no test noticed the last time

A mistake that no test notices is printed with the code before and after it. Either a test is missing, or the
mistake changes nothing that anybody could see; that one belongs into equivalent.toml, with the reason.

    targets     the modules in which mistakes are made, and how many
    operators   which mistakes there are
    record      which tests run which line
    worker      makes a mistake in a copy of the project and runs the tests
    __main__    puts it together
"""
