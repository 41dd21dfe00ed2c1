#!/usr/bin/env python3
"""Administration from elsewhere on a real node: who may, who may not, and what strangers on the port achieve (nothing).

    peer_test.py DIRECTORY
"""

import argparse
import json
import os
import pathlib
import shutil
import socket
import ssl
import sys
import urllib.request

from node import KISEKI, Node, Results, check, command, free_port, until


def kiseki(*words):
    """Exit code, standard output, standard error."""
    return command(KISEKI, *words)


def metric(node, name):
    text = urllib.request.urlopen(f"http://127.0.0.1:{node.admin_port}/metrics", timeout=5).read().decode()
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(f"kiseki_{name} ")]
    return int(float(values[0])) if values else 0


def preamble(lane=0, magic=b"KISEKIPL", version=1):
    return magic + version.to_bytes(2, "little") + lane.to_bytes(2, "little") + bytes(4)


def refused_more(node, before):
    return until("somebody is turned away", lambda: metric(node, "peer_refused_total") > before)


def members(node, where, pki):
    check(kiseki("--dir", node.dir, "ca", "issue-admin", "--name", "alice")[0] == 0, "an administrator's certificate is issued")
    alice = pki / "admin-alice"
    key = alice / "peer.key"
    check(key.stat().st_mode & 0o777 == 0o600, "its key is for its owner only")
    before = key.read_bytes()
    code, _, error = kiseki("--dir", node.dir, "ca", "issue-admin", "--name", "alice")
    check(code != 0 and "--replace" in error and key.read_bytes() == before, "it is not written over without being told")

    code, out, error = kiseki("--node", where, "--cert", alice, "status", "--json")
    status = json.loads(out) if code == 0 else {}
    check(status.get("phase") == "serving", f"status from elsewhere {error}")
    check(status.get("peer", {}).get("name") == "node/1", "status names the node's certificate")
    code, out, error = kiseki("--node", where, "--cert", alice, "tenant", "create", "far-away")
    check(code == 0, f"a tenant is made from elsewhere {error}")
    check("far-away" in kiseki("--dir", node.dir, "tenant", "list")[1], "and is there")
    code, out, _ = kiseki("--node", where, "--cert", alice, "key", "create", "far-away", "--json")
    check(code == 0 and json.loads(out)["access_key_id"], "an access key too")
    code, _, error = kiseki("--node", where, "--cert", alice, "tenant", "create", "far-away")
    check(code != 0 and error, f"a refusal of the node itself arrives as such: {error.strip()}")
    calls = 'link_calls_total{peer="admin/alice",way="in"}'
    check(until("the calls are counted", lambda: metric(node, calls) >= 4), "links are counted in /metrics")
    return alice


def strangers(node, where, pki, alice, work):
    port = int(where.rsplit(":", 1)[1])
    tenants = kiseki("--dir", node.dir, "tenant", "list", "--json")[1]
    code, _, error = kiseki("--node", where, "--cert", pki / "node", "tenant", "create", "by-node")
    check(code != 0 and "administrators only" in error, f"a node may not administer: {error.strip()}")

    cluster = json.loads(kiseki("--dir", node.dir, "status", "--json")[1])["cluster"]
    other = work / "other"
    kiseki("--dir", other, "ca", "init", "--cluster", cluster)
    kiseki("--dir", other, "ca", "issue-admin", "--name", "alice")
    forged = other / "pki/admin-alice"
    code, _, error = kiseki("--node", where, "--cert", forged, "tenant", "create", "forged")
    check(code != 0 and "another" in error, f"another authority's node is not believed: {error.strip()}")
    shutil.copy(pki / "ca.crt", forged / "ca.crt")
    before = metric(node, "peer_refused_total")
    code, _, error = kiseki("--node", where, "--cert", forged, "tenant", "create", "forged")
    check(code != 0 and "authority" in error, f"nor is its administrator let in: {error.strip()}")
    check(refused_more(node, before), "which is counted")

    code, _, error = kiseki("--node", where, "status")
    check(code != 0 and "--cert" in error, "without a certificate nothing is tried")
    context = ssl.create_default_context(cafile=pki / "ca.crt")
    before = metric(node, "peer_refused_total")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(preamble())
        answer = b""
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(bytes(64))
                answer = secure.recv(100)
        except OSError:
            pass
    check(answer == b"", "without a certificate nothing is answered")
    check(refused_more(node, before), "which is counted")
    for what, sent in [
        ("HTTP", b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"),
        ("noise", os.urandom(4096)),
        ("a lane that is not there", preamble(lane=200)),
        ("another version", preamble(version=9)),
        ("noise behind a preamble", preamble() + os.urandom(4096)),
        ("half a preamble", preamble()[:9]),
    ]:
        before = metric(node, "peer_refused_total")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
            try:
                # The node may have turned us away, and closed, before the last of these.
                plain.sendall(sent)
                plain.shutdown(socket.SHUT_WR)
                answer = plain.recv(100)
            except OSError:
                answer = b""
        # TLS answers noise with an alert, and no more.
        check(not answer or answer[0] == 21, f"{what} gets no answer")
        check(refused_more(node, before), "and is counted")
    said = node.log.read_text(errors="replace").count("sends no preamble")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        before = metric(node, "peer_refused_total")
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        refused_more(node, before)
    check(node.log.read_text(errors="replace").count("sends no preamble") == said == 1, "what was logged is not logged again")
    check(kiseki("--dir", node.dir, "tenant", "list", "--json")[1] == tenants, "nothing has changed")
    check(kiseki("--node", where, "--cert", alice, "status")[0] == 0, "and the node goes on")


def changes(node, where, pki, alice):
    kiseki("--dir", node.dir, "ca", "issue-admin", "--name", "bob")
    bob = pki / "admin-bob"
    code, out, error = kiseki("--dir", node.dir, "ca", "revoke", "--admin", "alice", "--reason", "lost laptop")
    check(code == 0 and "admin/alice" in out, f"a certificate is revoked {error}")

    def is_revoked():
        code, _, error = kiseki("--node", where, "--cert", alice, "status")
        return code != 0 and "revoked" in error

    check(until("the list is read again", is_revoked), "it is turned away within seconds, and told why")
    check(kiseki("--node", where, "--cert", bob, "status")[0] == 0, "others are let in")
    # An administrator who knows the list turns away a node that stands in for another.
    serial = next(row["serial"] for row in json.loads(kiseki("--dir", node.dir, "ca", "list", "--json")[1]) if row["name"] == "node/1")
    (bob / "revoked").write_text(f"{serial} node/1\n")
    code, _, error = kiseki("--node", where, "--cert", bob, "status")
    check(code != 0 and "revoked" in error, f"a revoked node is not believed: {error.strip()}")
    (bob / "revoked").unlink()
    listed = {row["name"]: row["state"] for row in json.loads(kiseki("--dir", node.dir, "ca", "list", "--json")[1])}
    check(listed == {"node/1": "valid", "admin/alice": "revoked", "admin/bob": "valid"}, f"the list says so: {listed}")

    good = (pki / "revoked").read_bytes()
    (pki / "revoked").write_bytes(good + b"nonsense\n")
    status = lambda: json.loads(kiseki("--dir", node.dir, "status", "--json")[1])["peer"]
    check("line" in until("the problem is told", lambda: status()["problem"]), "a list that makes no sense is told")
    check(is_revoked() and kiseki("--node", where, "--cert", bob, "status")[0] == 0, "and what was known goes on to hold")
    (pki / "revoked").write_bytes(good)
    until("the problem is gone", lambda: not status()["problem"])

    end = status()["not_after_unix"]
    words = ["--dir", node.dir, "ca", "issue-node", "--node", "1", "--days", "900", "--out", pki / "node", "--replace"]
    check(kiseki(*words)[0] == 0, "the node's certificate is renewed")
    check(until("it is taken", lambda: status()["not_after_unix"] > end), "the running node takes it")
    check(kiseki("--node", where, "--cert", bob, "status")[0] == 0, "and is believed with it")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=pathlib.Path)
    work = parser.parse_args().directory.resolve()
    work.mkdir(parents=True)
    node = Node(work / "node", devices=2)
    where = f"localhost:{free_port()}"
    os.environ["KISEKI_PEER_LISTEN"] = where.replace("localhost", "127.0.0.1")
    pki = node.dir / "pki"
    with node:
        node.start()
        alice = members(node, where, pki)
        strangers(node, where, pki, alice, work)
        changes(node, where, pki, alice)
        check(node.stop() == 0, "clean stop")
        (pki / "revoked").rename(pki / "elsewhere")
        node.start()
        status = json.loads(kiseki("--dir", node.dir, "status", "--json")[1])
        check(status["phase"] == "serving" and status["peer"] is None, "without the list the node serves, and the port stays closed")
        check(any("revoked" in warning for warning in status["warnings"]), f"which is said: {status['warnings']}")
        check(kiseki("--node", where, "--cert", pki / "admin-bob", "status")[0] != 0, "nobody is let in")
        check(node.stop() == 0, "clean stop")
        (pki / "elsewhere").rename(pki / "revoked")
        del os.environ["KISEKI_PEER_LISTEN"]
        node.start()
        status = json.loads(kiseki("--dir", node.dir, "status", "--json")[1])
        check(status["peer"] is None, "unless it is asked for, nothing listens")
        check(node.stop() == 0, "clean stop")
    print(f"{Results.passed} passed, {Results.failed} failed")
    return Results.failed != 0


if __name__ == "__main__":
    sys.exit(main())
