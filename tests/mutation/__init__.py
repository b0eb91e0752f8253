"""Mutation: deliberate mistakes in the pure core, one at a time, to see whether the tests notice.

    make mutate                                        a sample of all mistakes, and those of holes.toml
    make mutate ARGS="--all --module retinue.core.pipeline.edge"
    make mutate ARGS="--holes"                         only those of holes.toml
    make mutate ARGS="--again"                         those that no test noticed the last time

A mistake that no test notices is printed with the code before and after it. Either a test is missing, or the
mistake changes nothing that anybody could see; that one belongs into equivalent.toml, with the reason.

    targets     the modules in which mistakes are made, and how many
    operators   which mistakes there are
    record      has a test run tell which test runs which statement
    recording   keeps what it has told, and chooses the tests for a mistake
    imports     what a file rests on, so that it is known what a change concerns
    copies      of the project, in which mistakes are made
    patching    puts a mistake into a module that is imported already
    worker      makes a mistake in a copy and runs the tests
    verdicts    keeps which test has noticed which mistake
    __main__    puts it together

What is known is kept in build/mutation: a run that was broken off goes on where it was, and one after a
change tries what the change concerns. `--fresh` tries all again.
"""
