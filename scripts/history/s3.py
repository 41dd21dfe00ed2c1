"""A small S3 client that tells what is known of each request: it was answered, it was never sent, or nobody knows.

It signs like any client (AWS Signature Version 4) and asks once: what a library repeats by itself would not be in the history.
"""

import datetime
import hashlib
import hmac
import http.client
import select
import socket
import urllib.parse
import xml.etree.ElementTree

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class NotSent(Exception):
    """Nobody took the connection: nothing has happened."""


class NoAnswer(Exception):
    """It was sent, or part of it: whether it happened is not known."""


class Client:
    """One connection to one node, made again when it has ended."""

    def __init__(self, host, port, credentials, seconds):
        self.host, self.port, self.credentials, self.seconds = host, port, credentials, seconds
        self.connection = None

    def connect(self):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.seconds)
        try:
            connection.connect()
        except OSError as error:
            raise NotSent(str(error)) from error
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def ask(self, method, path, body=b"", headers=None, query=None):
        """(status, headers, body)."""
        path, query = urllib.parse.quote(path), urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote)
        headers = self.signed(method, path, query, body, headers or {})
        if self.connection is None or has_ended(self.connection):
            self.close()
            self.connection = self.connect()
        connection, self.connection = self.connection, None
        try:
            connection.request(method, f"{path}?{query}" if query else path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise NoAnswer(f"{type(error).__name__}: {error}") from error
        if answer.will_close:
            connection.close()
        else:
            self.connection = connection
        return answer.status, answer.headers, content

    def signed(self, method, path, query, body, headers):
        key, secret, region = self.credentials
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": f"{self.host}:{self.port}", "x-amz-content-sha256": digest, "x-amz-date": stamp, **headers}
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = "\n".join([method, path, query, lines, names, digest])
        scope = f"{day}/{region}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
        signing = f"AWS4{secret}".encode()
        for part in [day, region, "s3", "aws4_request"]:
            signing = hmac.digest(signing, part.encode(), "sha256")
        signature = hmac.digest(signing, text.encode(), "sha256").hex()
        words = f"Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
        return {**headers, "authorization": f"AWS4-HMAC-SHA256 {words}"}

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def has_ended(connection):
    """Whether the node has closed a connection that nobody waits on: then nothing is sent on it."""
    return bool(select.select([connection.sock], [], [], 0)[0])


def listed(body):
    """Keys and ETags of a listing, and whether it is the whole."""
    root = xml.etree.ElementTree.fromstring(body)
    rows = {row.findtext(f"{NAMESPACE}Key"): row.findtext(f"{NAMESPACE}ETag").strip('"') for row in root.iter(f"{NAMESPACE}Contents")}
    return rows, root.findtext(f"{NAMESPACE}IsTruncated") != "true"


def error_code(body):
    """The code of an S3 error, as far as there is one."""
    try:
        return xml.etree.ElementTree.fromstring(body).findtext("Code") or ""
    except xml.etree.ElementTree.ParseError:
        return ""
