"""What the pods of `make debug-metrics` run: asks addresses for their metrics, and prints what came of it as JSON lines.

It is handed to the pod's Python as text, so it uses nothing but the standard library. Argument: a JSON list of
{"name", "host", "port", "opens", "control"}. `opens` says that an answer is expected: then it asks again until the
deadline, since a new pod's address takes a moment to reach every node's rules. A `control` is only connected to: it
shows that the pod's own network works.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
from typing import Any

ATTEMPT_S = 3.0
DEADLINE_S = 15.0
PAUSE_S = 0.25
PROOF_LINES = 4


def look(host: str, port: int, control: bool = False) -> dict[str, Any]:
    """Ask once, and tell apart: no such name, refused, timed out, unreachable, a wrong answer, the app's metrics."""
    try:
        address = str(socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        return {"outcome": "dns", "detail": f"{host}: {error.strerror or error}"}
    where = f"{address}:{port}"
    connection = http.client.HTTPConnection(address, port, timeout=ATTEMPT_S)
    try:
        connection.connect()
        if control:
            return {"outcome": "answered", "detail": where}
        connection.request("GET", "/metrics", headers={"Host": f"{host}:{port}"})
        answer = connection.getresponse()
        lines = answer.read().decode(errors="replace").splitlines()
    except TimeoutError:
        return {"outcome": "timed out", "detail": f"{where}: no answer within {ATTEMPT_S:g} s"}
    except ConnectionRefusedError:
        return {"outcome": "refused", "detail": f"{where}: connection refused"}
    except (OSError, http.client.HTTPException) as error:
        return {"outcome": "unreachable", "detail": f"{where}: {error or type(error).__name__}"}
    finally:
        connection.close()
    proof = [line for line in lines if line.startswith("app_")][:PROOF_LINES]
    if answer.status != 200 or not proof:
        return {"outcome": "wrong answer", "detail": f"{where}: HTTP {answer.status}, no metrics of the application"}
    return {"outcome": "answered", "detail": f"{where}: HTTP 200, {len(lines)} lines", "lines": proof}


def ask(host: str, port: int, opens: bool, control: bool) -> dict[str, Any]:
    """Ask, and where an answer is expected ask again until there is one or the deadline has passed."""
    started = time.monotonic()
    found = look(host, port, control)
    while opens and found["outcome"] != "answered" and time.monotonic() - started < DEADLINE_S:
        time.sleep(PAUSE_S)
        found = look(host, port, control)
    return {"seconds": round(time.monotonic() - started, 3), **found}


def main(text: str) -> None:
    """Ask all, one after the other, and print a line for each."""
    for target in json.loads(text):
        found = ask(target["host"], target["port"], target["opens"], target["control"])
        print(json.dumps({"name": target["name"], **found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
