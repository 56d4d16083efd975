"""What a test starts in the place of ``python``: ``client.py SOCKET WORDS...``.

It hands words, working directory, environment and streams to the server and ends with the status of
the command; without the libraries of the environment, so that it starts in some ten milliseconds.
"""

import os
import socket
import sys


def asked(words: list[str]) -> bytes:
    """What the server is told: a folder, a count, words and the environment, between zeros."""
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    parts = [os.getcwd(), str(len(words)), *words, *environment]
    return b"\0".join(map(os.fsencode, parts))


def main(place: str, words: list[str]) -> None:
    """Run a command, here if it must have an interpreter of its own."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.connect(place)
        told = asked(words)
        socket.send_fds(server, [len(told).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(told)
        answer = server.recv(16).decode()
    if not answer:
        sys.exit("the server of commands ended")
    if answer == "new":
        os.execv(sys.executable, [sys.executable, *words])
    status = int(answer)
    if status < 0:  # ended by a signal
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
