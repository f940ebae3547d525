# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Listens at PATH for one sender, reads until that has closed its sending half, prints what
it said, and only then closes."""

import socket
import sys

listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[1])
listener.listen()
connection, _ = listener.accept()
said = b""
while part := connection.recv(65536):
    said += part
print(said.decode(), end="", flush=True)
connection.close()
