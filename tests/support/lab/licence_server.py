"""A licence server over TLS, of programs that are licensed to one machine: a program for the lab's tests.

    python licence_server.py ADDRESS PORT CERTIFICATE KEY

A licence holds for one session of one connection, and is bound to what its first line says: name, MAC and
address of the machine. Each line is answered, and told as "granted 3 vm1 52:54:..." or "refused 3 ...";
"session" when one begins, "lost" when it ends. It runs without any package.
"""

import socket
import ssl
import sys

CIPHERS = "AES128-GCM-SHA256:AES128-SHA256:@SECLEVEL=0"
"""Those of the guest's busybox."""


def main() -> None:
    address, port, certificate, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.load_cert_chain(certificate, key)
    with socket.create_server((address, int(port))) as listener:
        print("listens", flush=True)
        while True:
            wire, (peer, _) = listener.accept()
            try:
                serve(context.wrap_socket(wire, server_side=True), peer)
            except OSError as error:
                print(f"lost: {error}", flush=True)


def serve(session: ssl.SSLSocket, peer: str) -> None:
    print(f"session of {peer}, {session.version()}", flush=True)
    licensed, number = b"", 0
    with session.makefile("rwb") as lines:
        for line in lines:
            number += 1
            licensed = licensed or line
            granted = line == licensed and peer.encode() in line.split()
            print(f"{'granted' if granted else 'refused'} {number} {line.decode().strip()}", flush=True)
            lines.write(b"granted\n" if granted else b"refused\n")
            lines.flush()
    print("lost: it was closed", flush=True)


if __name__ == "__main__":
    main()
