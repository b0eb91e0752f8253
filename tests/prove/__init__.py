"""Proof: what the property tests sample, shown of all header values, on small networks in every state.

    make prove                                   every network and every state of a migration
    make prove ARGS="--network dual"             one network
    make prove ARGS="--list"                     the networks, and the moments of each

A frame is a set of unknowns, one for each header field. `reach` lets it into a port and follows it through
the compiled entries of all switches; wherever an entry may match or not, it goes both ways, and a solver (z3)
says which of them there are frames for. At each end it stands for all frames that go exactly this way: a
`Fate`. The properties are then questions about fates, which the solver answers: is there a frame of this fate
that should have had another? If so, it is printed, with the entries it passed.

    terms        fields as unknowns, matches as conditions on them
    reach        the ways of a frame through switches
    networks     the networks, and the moments of a migration
    honest       which frames are honest, and which sources a NIC has
    properties   what must hold of each fate
    wire         a counter-example as a frame of bytes
    words        ... and in words
    run          explorers over moments, in several processes
    __main__     the command
"""
