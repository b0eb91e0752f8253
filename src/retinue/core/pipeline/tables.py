"""The table plan: read this page first.

Edge, leaf and spine are roles of one switch program. All forwarding between servers is IP forwarding *to a
server*; only the edge knows VMs by port. Nothing is learned from traffic and nothing is flooded: a frame
that no entry names is dropped.

      table            edge                         leaf                          spine
    0 ADMIT      who may send what from         from a server or a spine?     IP to the gateway MAC?
                 which port (bindings)          ARP, DHCP to where they end
   10 ARP        answered here or by the        answered here or by the       -
                 controller, never passed on    controller
   15 ND         IPv6: neighbour discovery is     -                             -
                 checked and ends here
   17 ANSWER     IPv6: a question about the     asked for a gateway: the       -
                 gateway, or a VM here: the     answer
                 answer; any other: to the
                 controller
   20 FORWARD    MAC known here: out of its     -                             -
                 port; any other unicast: MAC
                 := gateway, up
   30 DELIVER    IP of a VM here: MAC := its    -                             -
                 own, out of its port
   35 ROUTE      -                              host here: MAC := its         every host: MAC := its
                                                server's; else: a spine       server's, to its leaf
   40 SERVERS    -                              server's MAC: its port;       server's MAC: its leaf
                                                a copy for another: a spine

Spines may know MACs alone instead (underlay/mac_spines.py): they have no ROUTE, and a leaf's ROUTE has every
host elsewhere, too: MAC := its server's, which SERVERS sends to a spine.

Where tunnels over an IP network that is not ours join the leaves there are no spines. ROUTE and SERVERS of a
leaf then know all others' hosts and servers, too, each by its leaf's address on that network; two more tables
stand on leaves only:

   38 UNWRAP     what a tunnel has brought: the VRF's tag instead of the tunnel's identifier
   45 WRAP       what is to go by a tunnel: the other way round, out of the tunnel's port

A packet from a VM on server1 to a VM on server2 passes: edge1 ADMIT, FORWARD (MAC := gateway), leaf1 ADMIT,
ROUTE (to a spine), spine ADMIT, ROUTE (MAC := server2), leaf2 ADMIT, SERVERS, edge2 ADMIT, DELIVER.
TTL is taken down once, by the leaf: to IP the whole fabric is one router.

What is for a VM whose server has not been found a leaf's ROUTE hands to the controller, which holds it, asks
for the server, and lets it go on once the way there stands (controller/neighbours/held_packets.py).

A migration of a VM changes its entries on its two edges, its two leaves and the spines, and nowhere else.
While the VM is paused its new edge sends a copy of what it delivers to the old one: up again, with the old
server's MAC, as which the leaf lets it in, from that port for that address (LeafAdmit.COPY).

Which entry of a table wins is in `priorities`, what it is for in `cookies`; entries of edges are in `edge`,
of leaves and spines in `underlay`, what switches answer by themselves in `responders`.
"""

from enum import IntEnum


class Table(IntEnum):
    """The tables by their numbers: a frame only goes on to a higher one."""

    ADMIT = 0
    ARP = 10
    ND = 15
    ANSWER = 17
    FORWARD = 20
    DELIVER = 30
    ROUTE = 35
    UNWRAP = 38
    SERVERS = 40
    WRAP = 45
