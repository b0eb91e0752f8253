"""How one server's libvirt reaches another's for a migration: a libvirt URI, and which ones are accepted.

The target's agent tells the source's. libvirtd acts on such a URI as root, and a URI can say much: what
program is run instead of ssh, with which options, or on which path a socket is. So of what another server
tells only this is accepted: a transport over the network, the one this server is reached by itself, a host,
and nothing else.
"""

import re

from retinue.hypervisor.errors import HypervisorError

_FORM = re.compile(
    r"qemu\+(?P<transport>tcp|tls|ssh|libssh2?)://"
    r"(?:[A-Za-z_][A-Za-z0-9_-]*@)?"
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/system"
)


def transport(control: str) -> str:
    """By which it goes. Raises HypervisorError for a URI of another form."""
    found = _FORM.fullmatch(control)
    if found is None:
        raise HypervisorError(
            f"{control!r} is not how another server's libvirt is reached: it is qemu+TRANSPORT://HOST/system "
            "with tcp, tls, ssh or libssh, and nothing behind it"
        )
    return found["transport"]


def accepted(control: str, own: str) -> str:
    """The same, if it goes by the transport of this server's `own`; any does if that is "".

    Raises HypervisorError.
    """
    if own and transport(control) != transport(own):
        raise HypervisorError(
            f"the target's libvirt is reached as {control}, this server's as {own}: [libvirt] control must "
            "be of one transport on all servers"
        )
    transport(control)
    return control
