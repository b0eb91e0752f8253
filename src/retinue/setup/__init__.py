"""From servers that exist to a network of ours: what each machine needs, made from one file.

    site       the file: the machines, the IP network between them, subnets, routers
    machines   what each machine gets: files, the commands that set it up, and those that take it back
    look       what a machine has: Open vSwitch, libvirt, interfaces

Nothing here changes a machine: what changes it is a script that is made to be read first.
"""
