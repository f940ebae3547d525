# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Listens at `vsock PORT` or `unix PATH`, and answers a client that has closed its sending
half with all that it sent."""

import socket
import sys

family, place = sys.argv[1:]
if family == "vsock":
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, int(place)))
else:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(place)
listener.listen()
while True:
    connection, _ = listener.accept()
    with connection:
        heard = b""
        while part := connection.recv(65536):
            heard += part
        connection.sendall(heard)
