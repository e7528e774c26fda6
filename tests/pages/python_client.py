"""`python` of the pages' commands: it asks tests/pages/conftest.py to run the program.

python_client.py SOCKET ARGUMENT…
"""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    request = {
        "command": sys.argv[2:],
        "directory": os.getcwd(),  # noqa: PTH109 (pathlib is slow to import)
        "environment": dict(os.environ),
        "stdout": f"/proc/{os.getpid()}/fd/1",
        "stderr": f"/proc/{os.getpid()}/fd/2",
    }
    connection.sendall(json.dumps(request).encode() + b"\n")
    sys.exit(int(connection.makefile().readline()))
