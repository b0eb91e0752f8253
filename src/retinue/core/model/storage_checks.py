"""What cannot be of a login of storage."""

from retinue.core.limits import MOST_FC_LOGINS
from retinue.core.model.addresses import ModelError, is_multicast
from retinue.core.model.entities import VM, Service
from retinue.core.model.storage import FcLogin, is_granted_mac
from retinue.core.model.view import NetworkView


def _check_guests(net: NetworkView, vm: VM, login: FcLogin, what: str) -> None:
    """A guest's forwarder is at its home, and has no MAC that anybody has here."""
    peer, mac = net.peers.get(vm.home), login.forwarder_mac
    if peer is None or not peer.storage or login.forwarder != peer.gateway:
        raise ModelError(f"{what}: storage of domain {vm.home} does not come here (`domain.storage`)")
    if not mac or is_multicast(mac):
        raise ModelError(f"{what}: a forwarder at its home is known by its MAC, and {mac or 'none'} is none")
    if net.place_of_mac(mac) is not None or net.vm_of_mac(mac) is not None or mac in net.gateway_macs:
        raise ModelError(f"{what}: its forwarder has MAC {mac}, which somebody has here")


def check_fc_login(net: NetworkView, login: FcLogin) -> None:
    """Raises ModelError for a login that cannot be."""
    what = f"login {login.mac} of VM {login.vm}"
    vm, forwarder = net.vms.get(login.vm), net.servers.get(login.forwarder)
    if vm is None or vm.nic_with(login.nic) is None:
        raise ModelError(f"{what}: the VM has no NIC {login.nic}")
    if vm.home:
        _check_guests(net, vm, login, what)
    elif forwarder is None or login.forwarder_mac or Service.FORWARDER not in forwarder.services:
        raise ModelError(f"{what}: {login.forwarder} is no FCoE forwarder")
    for peer in [one for at in vm.locations if (one := net.peer_at(at)) is not None]:
        if not vm.home and not peer.storage:
            raise ModelError(
                f"{what}: the VM is in domain {peer.id} or on its way, and storage does not go there "
                "(`domain.storage`)"
            )
    if not is_granted_mac(login.mac, login.fc_id):
        raise ModelError(f"{what}: {login.mac} is no address that a forwarder grants")
    if net.place_of_mac(login.mac) is not None or net.vm_of_mac(login.mac) is not None:
        raise ModelError(f"{what}: somebody has that MAC here")
    other = net.fc_logins.get(login.mac)
    if other is not None and other.nic != login.nic:
        # A guest's home is told of none of ours.
        whose = "somebody here" if vm.home else f"NIC {other.nic} of VM {other.vm}"
        raise ModelError(f"{what}: {whose} is logged in with it")
    if other is None and len(net.logins_of(login.nic)) >= MOST_FC_LOGINS:
        raise ModelError(f"{what}: its NIC has {MOST_FC_LOGINS} already")
