# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Connects to port PORT of the host (`vsock PORT`) or of a guest (`unix PATH PORT`), sends,
closes its sending half, and expects the same back."""

import os
import socket
import sys

family, *place = sys.argv[1:]
if family == "vsock":
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    connection.connect((socket.VMADDR_CID_HOST, int(place[0])))
else:
    path, port = place
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    connection.sendall(f"CONNECT {port}\n".encode())
    expected = f"OK {port}\n".encode()
    answer = connection.recv(len(expected), socket.MSG_WAITALL)
    if answer != expected:
        sys.exit(f"{answer} instead of {expected}")
# Less than the connection's buffers hold, since nobody reads while this sends.
said = os.urandom(50_000)
connection.sendall(said)
connection.shutdown(socket.SHUT_WR)
heard = b""
while part := connection.recv(65536):
    heard += part
if heard != said:
    sys.exit(f"{len(heard)} bytes came back, other than the {len(said)} that were sent")
print("same")
