# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Becomes systemd-notify in a guest: tells port PORT of the host that it is ready."""

import os
import sys

os.environ["NOTIFY_SOCKET"] = f"vsock-stream:2:{sys.argv[1]}"
os.execv("/usr/bin/systemd-notify", ["systemd-notify", "--ready", "--no-block"])
