"""Fuzzing: damaged input for every parser of what comes from outside; no error but the declared ones.

    make fuzz                                        a million inputs for each parser
    make fuzz ARGS="--inputs 10000 --parser nd"      fewer, for one
    make fuzz ARGS="--list"                          the parsers

Inputs are made from valid samples, by mutation, from fixed seeds: the same in each run. Each is given an
amount of processor time that no parser needs by far. What fails is printed with the input, and becomes a
test.

    mutate       how bytes, and JSON, are damaged
    samples      valid input of each kind
    parsers      the list: who parses what, and which errors it declares
    run          inputs in blocks, each from its own seed
    __main__     the command
"""
