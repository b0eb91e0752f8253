"""What cannot be of a login of storage."""

from retinue.core.limits import MOST_FC_LOGINS
from retinue.core.model.addresses import ModelError
from retinue.core.model.entities import Service
from retinue.core.model.storage import FcLogin, is_granted_mac
from retinue.core.model.view import NetworkView


def check_fc_login(net: NetworkView, login: FcLogin) -> None:
    """Raises ModelError for a login that cannot be."""
    what = f"login {login.mac} of VM {login.vm}"
    vm, forwarder = net.vms.get(login.vm), net.servers.get(login.forwarder)
    if vm is None or vm.nic_with(login.nic) is None:
        raise ModelError(f"{what}: the VM has no NIC {login.nic}")
    if forwarder is None or Service.FORWARDER not in forwarder.services:
        raise ModelError(f"{what}: {login.forwarder} is no FCoE forwarder")
    if not is_granted_mac(login.mac, login.fc_id):
        raise ModelError(f"{what}: {login.mac} is no address that a forwarder grants")
    other = net.fc_logins.get(login.mac)
    if other is not None and other.nic != login.nic:
        raise ModelError(f"{what}: NIC {other.nic} of VM {other.vm} is logged in with it")
    if other is None and len(net.logins_of(login.nic)) >= MOST_FC_LOGINS:
        raise ModelError(f"{what}: its NIC has {MOST_FC_LOGINS} already")
