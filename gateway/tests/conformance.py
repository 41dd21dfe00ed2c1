#!/usr/bin/env python3
"""S3 conformance of a Kiseki endpoint, seen through boto3 and through raw requests.

Reads AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_CA_BUNDLE. Makes buckets of its
own, removes them at the end, prints one line a case and the sums last; the exit code is not 0 when a case failed.

    python3 conformance.py [--memory] [--only TEXT]

--memory adds the cases that need the test server of this crate (faults on command, short timeouts).
"""

import base64
import concurrent.futures
import datetime
import functools
import hashlib
import hmac
import http.client
import os
import random
import re
import socket
import ssl
import struct
import sys
import time
import traceback
import urllib.parse
import urllib.request
import zlib

import boto3
import botocore
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT = os.environ["AWS_ENDPOINT_URL"]
KEY = os.environ["AWS_ACCESS_KEY_ID"]
SECRET = os.environ["AWS_SECRET_ACCESS_KEY"]
REGION = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
MEMORY = "--memory" in sys.argv
ONLY = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
URL = urllib.parse.urlsplit(ENDPOINT)
TLS = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE")) if URL.scheme == "https" else None
RUN = "%08x" % random.SystemRandom().getrandbits(32)
KIB, MIB = 1024, 1024 * 1024


def client(key=KEY, secret=SECRET, **config):
    config.setdefault("retries", {"max_attempts": 1})
    config.setdefault("s3", {"addressing_style": "path"})
    return boto3.client(
        "s3",
        endpoint_url=ENDPOINT,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name=REGION,
        config=Config(signature_version="s3v4", max_pool_connections=32, **config),
    )


s3 = client()

# ---------------------------------------------------------------------------------------------------------------------
# Checksums that the standard library lacks.


def crc_table(poly):
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ poly if byte & 1 else byte >> 1
        table.append(byte)
    return tuple(table)


CRC32C_TABLE = crc_table(0x82F63B78)
CRC64_TABLE = crc_table(0x9A6C9329AC4BC9B5)


@functools.lru_cache(maxsize=64)
def crc(table, width, data):
    value = (1 << width) - 1
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ ((1 << width) - 1)


ALGORITHMS = {
    "CRC32": lambda data: struct.pack(">I", zlib.crc32(data)),
    "CRC32C": lambda data: struct.pack(">I", crc(CRC32C_TABLE, 32, data)),
    "CRC64NVME": lambda data: struct.pack(">Q", crc(CRC64_TABLE, 64, data)),
    "SHA1": lambda data: hashlib.sha1(data).digest(),
    "SHA256": lambda data: hashlib.sha256(data).digest(),
}


def b64(data):
    return base64.b64encode(data).decode()


def checksum(algorithm, data):
    return b64(ALGORITHMS[algorithm](data))


def md5(data):
    return hashlib.md5(data).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Requests that boto3 would not send: signed here, sent byte by byte.


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def code(self):
        found = re.search(rb"<Code>([^<]*)</Code>", self.body)
        return found.group(1).decode() if found else None


def hmac256(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def signing_key(secret, day):
    return hmac256(hmac256(hmac256(hmac256(("AWS4" + secret).encode(), day), REGION), "s3"), "aws4_request")


EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class Signed:
    """One SigV4 signature and what it takes to sign chunks behind it."""

    def __init__(self, method, path, query, headers, payload, key=KEY, secret=SECRET, at=None):
        at = at or datetime.datetime.now(datetime.timezone.utc)
        self.stamp = at.strftime("%Y%m%dT%H%M%SZ")
        self.scope = f"{self.stamp[:8]}/{REGION}/s3/aws4_request"
        self.key = signing_key(secret, self.stamp[:8])
        self.headers = {"host": URL.netloc, "x-amz-date": self.stamp, "x-amz-content-sha256": payload}
        self.headers.update({name.lower(): value for name, value in headers.items()})
        names = sorted(self.headers)
        canonical_query = "&".join(
            f"{urllib.parse.quote(name, safe='-_.~')}={urllib.parse.quote(value, safe='-_.~')}"
            for name, value in sorted(query.items())
        )
        canonical = "\n".join(
            [method, path, canonical_query]
            + [f"{name}:{str(self.headers[name]).strip()}" for name in names]
            + ["", ";".join(names), payload]
        )
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        self.signature = self.sign("\n".join(["AWS4-HMAC-SHA256", self.stamp, self.scope, hashed]))
        self.headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={key}/{self.scope},SignedHeaders={';'.join(names)},"
            f"Signature={self.signature}"
        )
        self.query = canonical_query

    def sign(self, text):
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()

    def chunk(self, data, previous):
        return self.sign(
            "\n".join(
                ["AWS4-HMAC-SHA256-PAYLOAD", self.stamp, self.scope, previous, EMPTY_SHA256]
                + [hashlib.sha256(data).hexdigest()]
            )
        )

    def trailer(self, text, previous):
        hashed = hashlib.sha256(text).hexdigest()
        return self.sign("\n".join(["AWS4-HMAC-SHA256-TRAILER", self.stamp, self.scope, previous, hashed]))


def connect(timeout=60):
    if TLS:
        return http.client.HTTPSConnection(URL.hostname, URL.port or 443, timeout=timeout, context=TLS)
    return http.client.HTTPConnection(URL.hostname, URL.port or 80, timeout=timeout)


def send(method, target, headers, body=b"", timeout=60):
    """Sends exactly this; `target` is not changed and nothing is added but what HTTP needs."""
    connection = connect(timeout)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, str(value))
        try:
            connection.endheaders(body if body else None)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before the body was sent; the answer is there to be read
        response = connection.getresponse()
        data = response.read()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, data)
    finally:
        connection.close()


def raw(method, path, body=b"", query=None, headers=None, payload=None, length=True, **signing):
    """A signed request. `path` is what goes over the wire, already encoded."""
    headers = dict(headers or {})
    payload = payload if payload is not None else hashlib.sha256(body).hexdigest()
    signed = Signed(method, path, query or {}, headers, payload, **signing)
    if length and (body or method in ("PUT", "POST")):
        signed.headers.setdefault("content-length", len(body))
    return send(method, path + ("?" + signed.query if signed.query else ""), signed.headers, body)


def chunked(path, data, mode, trailer=None, chunk=64 * KIB, headers=None, declared=None, spoil=None, cut=None):
    """PUTs `data` in one of the three aws-chunked payload modes; `trailer` is (name, value)."""
    headers = dict(headers or {})
    signs = mode.startswith("STREAMING-AWS4")
    has_trailer = mode.endswith("TRAILER")
    headers["content-encoding"] = "aws-chunked"
    headers["x-amz-decoded-content-length"] = str(len(data) if declared is None else declared)
    if has_trailer and trailer:
        headers["x-amz-trailer"] = trailer[0]
    signed = Signed("PUT", path, {}, headers, mode)
    previous = signed.signature
    body = b""
    pieces = [data[at : at + chunk] for at in range(0, len(data), chunk)] + [b""]
    for index, piece in enumerate(pieces):
        if signs:
            signature = signed.chunk(piece, previous)
            previous = signature
            if spoil == index:
                signature = "0" * 64
            body += b"%x;chunk-signature=%s\r\n" % (len(piece), signature.encode())
        else:
            body += b"%x\r\n" % len(piece)
        body += piece
        if piece or not has_trailer:
            body += b"\r\n"
    if has_trailer:
        if trailer:
            line = f"{trailer[0]}:{trailer[1]}".encode()
            body += line + b"\r\n"
            if signs:
                signature = signed.trailer(line + b"\n", previous)
                body += b"x-amz-trailer-signature:" + signature.encode() + b"\r\n"
        body += b"\r\n"
    if cut is not None:
        body = body[:cut]
    signed.headers["content-length"] = len(body)
    return send("PUT", path, signed.headers, body)


# ---------------------------------------------------------------------------------------------------------------------
# The frame.

CASES = []
BUCKETS = []


def case(function):
    CASES.append(function)
    return function


def bucket(suffix):
    name = f"kiseki-{RUN}-{suffix}"
    try:
        s3.create_bucket(Bucket=name, **location())
    except ClientError as error:
        if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
            raise
    if name not in BUCKETS:
        BUCKETS.append(name)
    return name


def location():
    return {} if REGION == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": REGION}}


def expect(actual, expected, what=""):
    if actual != expected:
        raise AssertionError(f"{what}: expected {expected!r:.300}, got {actual!r:.300}")


def refused(code, status, function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except ClientError as error:
        expect(error.response["Error"]["Code"], code, "code")
        expect(error.response["ResponseMetadata"]["HTTPStatusCode"], status, "status")
        return error.response
    raise AssertionError(f"expected {code}, but it succeeded")


def answered(answer, status, code=None):
    expect((answer.status, answer.code), (status, code), answer.body[:300])
    assert answer.headers.get("x-amz-request-id"), "an answer without x-amz-request-id"
    if code:
        assert re.search(rb"<Message>[^<]+</Message>", answer.body), answer.body
        assert re.search(rb"<RequestId>[^<]+</RequestId>", answer.body), answer.body
    return answer


def absent(name, key):
    refused("404", 404, s3.head_object, Bucket=name, Key=key)


def content(length, seed=1):
    return random.Random(seed * 1_000_003 + length).randbytes(length)


def read(name, key, **keywords):
    return s3.get_object(Bucket=name, Key=key, **keywords)["Body"].read()


def empty(name):
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=name):
        keys = [{"Key": v["Key"], "VersionId": v["VersionId"]} for v in page.get("Versions", [])]
        if keys:
            errors = s3.delete_objects(Bucket=name, Delete={"Objects": keys, "Quiet": True}).get("Errors")
            expect(errors, None, "errors of the clean-up")
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=name):
        for upload in page.get("Uploads", []):
            s3.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])


# ---------------------------------------------------------------------------------------------------------------------
# Buckets.


@case
def bucket_life():
    name = f"kiseki-{RUN}-life"
    absent_head = refused("404", 404, s3.head_bucket, Bucket=name)
    assert absent_head["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"]
    s3.create_bucket(Bucket=name, **location())
    BUCKETS.append(name)
    expect(s3.head_bucket(Bucket=name)["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"], REGION)
    refused("BucketAlreadyOwnedByYou", 409, s3.create_bucket, Bucket=name, **location())
    assert name in [b["Name"] for b in s3.list_buckets()["Buckets"]]
    s3.put_object(Bucket=name, Key="a/b", Body=b"x")
    refused("BucketNotEmpty", 409, s3.delete_bucket, Bucket=name)
    s3.delete_object(Bucket=name, Key="a/b")
    s3.delete_bucket(Bucket=name)
    BUCKETS.remove(name)
    refused("NoSuchBucket", 404, s3.delete_bucket, Bucket=name)
    refused("NoSuchBucket", 404, s3.list_objects_v2, Bucket=name)
    refused("NoSuchBucket", 404, s3.put_object, Bucket=name, Key="k", Body=b"x")
    refused("NoSuchBucket", 404, s3.get_object, Bucket=name, Key="k")
    refused("NoSuchBucket", 404, s3.delete_object, Bucket=name, Key="k")
    refused("NoSuchBucket", 404, s3.create_multipart_upload, Bucket=name, Key="k")
    refused("NoSuchBucket", 404, s3.get_bucket_location, Bucket=name)
    assert name not in [b["Name"] for b in s3.list_buckets()["Buckets"]]


@case
def bucket_names():
    for bad in ["ab", "a" * 64, "Upper", "under_score", "-dash", "dash-", "two..dots", "192.168.0.1", "xn--a", "%20a"]:
        answered(raw("PUT", f"/{bad}"), 400, "InvalidBucketName")
    for good in [f"{RUN}.dots.in", f"0-{RUN}", (f"{RUN}" + "a" * 63)[:63]]:
        s3.create_bucket(Bucket=good, **location())
        s3.delete_bucket(Bucket=good)


@case
def bucket_listing_pages():
    names = sorted(bucket(f"page{i}") for i in range(3))
    prefix = f"kiseki-{RUN}-page"
    found, token = [], {}
    while True:
        page = s3.list_buckets(MaxBuckets=1, Prefix=prefix, **token)
        found += [b["Name"] for b in page["Buckets"]]
        if "ContinuationToken" not in page:
            break
        token = {"ContinuationToken": page["ContinuationToken"]}
    expect(found, names)
    for name in names:
        s3.delete_bucket(Bucket=name)
        BUCKETS.remove(name)


@case
def bucket_questions():
    name = bucket("main")
    expect(s3.get_bucket_location(Bucket=name)["LocationConstraint"], None if REGION == "us-east-1" else REGION)
    versioning = s3.get_bucket_versioning(Bucket=name)
    assert "Status" not in versioning
    for acl in [s3.get_bucket_acl(Bucket=name)]:
        expect([g["Permission"] for g in acl["Grants"]], ["FULL_CONTROL"])
        expect(acl["Grants"][0]["Grantee"]["ID"], acl["Owner"]["ID"])
    wrong = "eu-north-1" if REGION != "eu-north-1" else "eu-west-1"
    body = f"<CreateBucketConfiguration><LocationConstraint>{wrong}</LocationConstraint></CreateBucketConfiguration>"
    answered(raw("PUT", f"/kiseki-{RUN}-elsewhere", body.encode()), 400, "IllegalLocationConstraintException")


@case
def not_implemented_is_said():
    name = bucket("main")
    s3.put_object(Bucket=name, Key="ni", Body=b"x")
    calls = [
        (s3.put_bucket_versioning, dict(VersioningConfiguration={"Status": "Enabled"})),
        (s3.put_bucket_policy, dict(Policy="{}")),
        (s3.get_bucket_policy, {}),
        (s3.put_bucket_tagging, dict(Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})),
        (s3.put_bucket_cors, dict(CORSConfiguration={"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]})),
        (s3.put_bucket_website, dict(WebsiteConfiguration={"IndexDocument": {"Suffix": "i"}})),
        (s3.get_bucket_lifecycle_configuration, {}),
        (s3.get_object_lock_configuration, {}),
        (s3.put_bucket_acl, dict(ACL="public-read")),
        (s3.put_public_access_block, dict(PublicAccessBlockConfiguration={"BlockPublicAcls": False})),
        (s3.put_object_tagging, dict(Key="ni", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})),
        (s3.put_object_acl, dict(Key="ni", ACL="public-read")),
        (s3.put_object_retention, dict(Key="ni", Retention={"Mode": "GOVERNANCE"})),
        (s3.restore_object, dict(Key="ni", RestoreRequest={"Days": 1})),
        (s3.put_object, dict(Key="ni2", Body=b"x", Tagging="a=b")),
        (s3.put_object, dict(Key="ni2", Body=b"x", ACL="public-read")),
        (s3.put_object, dict(Key="ni2", Body=b"x", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate="2030-01-01")),
        (s3.put_object, dict(Key="ni2", Body=b"x", ServerSideEncryption="aws:kms")),
        (s3.put_object, dict(Key="ni2", Body=b"x", WebsiteRedirectLocation="/a")),
        (s3.put_object, dict(Key="ni2", Body=b"x", GrantRead="id=1")),
        (s3.create_multipart_upload, dict(Key="ni2", Tagging="a=b")),
    ]
    for function, keywords in calls:
        refused("NotImplemented", 501, function, Bucket=name, **keywords)
    customer = {"x-amz-server-side-encryption-customer-algorithm": "AES256"}
    answered(raw("PUT", f"/{name}/ni2", b"x", headers=customer), 501, "NotImplemented")
    refused("InvalidStorageClass", 400, s3.put_object, Bucket=name, Key="ni2", Body=b"x", StorageClass="GLACIER")
    absent(name, "ni2")
    lock = dict(ObjectLockEnabledForBucket=True, **location())
    refused("NotImplemented", 501, s3.create_bucket, Bucket=f"kiseki-{RUN}-lock", **lock)
    s3.put_object(Bucket=name, Key="ni3", Body=b"x", ACL="private", StorageClass="STANDARD", ServerSideEncryption="AES256")
    expect(s3.get_object_tagging(Bucket=name, Key="ni3")["TagSet"], [])
    expect(s3.get_object_acl(Bucket=name, Key="ni3")["Grants"][0]["Permission"], "FULL_CONTROL")


# ---------------------------------------------------------------------------------------------------------------------
# Objects.

BORDERS = [border + delta for border in (65536, 262144, MIB, 4 * MIB) for delta in (-1, 0, 1)]


@case
def put_and_get_at_every_border():
    name = bucket("main")
    for length in [0, 1, 4095, 4096, 4097] + BORDERS:
        data = content(length)
        etag = s3.put_object(Bucket=name, Key=f"size/{length}", Body=data)["ETag"]
        expect(etag, f'"{md5(data)}"')
        answer = s3.get_object(Bucket=name, Key=f"size/{length}")
        expect((answer["ContentLength"], answer["ETag"]), (length, etag))
        assert answer["Body"].read() == data, f"{length} bytes came back different"
        head = s3.head_object(Bucket=name, Key=f"size/{length}")
        expect((head["ContentLength"], head["ETag"], head["AcceptRanges"]), (length, etag, "bytes"))


@case
def ranges():
    name = bucket("main")
    length = 9 * MIB + 12345
    data = content(length)
    s3.put_object(Bucket=name, Key="ranges", Body=data)
    spans = [(0, 0), (0, length - 1), (length - 1, length - 1), (1, 2)]
    for border in BORDERS + [2 * MIB, 8 * MIB]:
        spans += [(border - 1, border), (border, border), (border - 1, border + 65536), (0, border), (border, length - 1)]
    chance = random.Random(7)
    for _ in range(40):
        first = chance.randrange(length)
        spans.append((first, min(length - 1, first + chance.choice([0, 1, 100, 65536, 1 << 20, 5 << 20]))))
    for first, last in spans:
        answer = s3.get_object(Bucket=name, Key="ranges", Range=f"bytes={first}-{last}")
        expect(answer["ResponseMetadata"]["HTTPStatusCode"], 206)
        expect(answer["ContentRange"], f"bytes {first}-{last}/{length}")
        assert answer["Body"].read() == data[first : last + 1], f"bytes={first}-{last}"
    for text, start in [("bytes=-1", -1), ("bytes=-65537", -65537), (f"bytes=-{length * 2}", 0), (f"bytes={length - 3}-", -3)]:
        assert read(name, "ranges", Range=text) == data[start:], text
    assert read(name, "ranges", Range=f"bytes=5-{length * 9}") == data[5:]
    for bad in [f"bytes={length}-", f"bytes={length}-{length}", "bytes=-0"]:
        answer = refused("InvalidRange", 416, s3.get_object, Bucket=name, Key="ranges", Range=bad)
        expect(answer["ResponseMetadata"]["HTTPHeaders"]["content-range"], f"bytes */{length}")
    head = s3.head_object(Bucket=name, Key="ranges", Range="bytes=10-19")
    expect((head["ResponseMetadata"]["HTTPStatusCode"], head["ContentLength"]), (206, 10))
    s3.put_object(Bucket=name, Key="nothing", Body=b"")
    refused("InvalidRange", 416, s3.get_object, Bucket=name, Key="nothing", Range="bytes=0-0")


@case
def overwrite_and_delete():
    name = bucket("main")
    for data in [b"first", b"second, longer", b""]:
        s3.put_object(Bucket=name, Key="over", Body=data)
        expect(read(name, "over"), data)
    s3.delete_object(Bucket=name, Key="over")
    refused("NoSuchKey", 404, s3.get_object, Bucket=name, Key="over")
    absent(name, "over")
    expect(s3.delete_object(Bucket=name, Key="over")["ResponseMetadata"]["HTTPStatusCode"], 204)


@case
def headers_and_metadata():
    name = bucket("main")
    given = dict(
        ContentType="text/x-test; charset=utf-8",
        CacheControl="max-age=7",
        ContentDisposition='attachment; filename="a b.txt"',
        ContentEncoding="gzip",
        ContentLanguage="de, en",
        Metadata={"one": "1", "with-dash": "some value, with comma", "empty-not": "x"},
    )
    s3.put_object(Bucket=name, Key="meta", Body=b"x", Expires=datetime.datetime(2030, 1, 2, 3, 4, 5), **given)
    for answer in [s3.get_object(Bucket=name, Key="meta"), s3.head_object(Bucket=name, Key="meta")]:
        expect({field: answer.get(field) for field in given}, given)
        expect(answer["ResponseMetadata"]["HTTPHeaders"]["expires"], "Wed, 02 Jan 2030 03:04:05 GMT")
        expect(answer["ServerSideEncryption"], "AES256")
        age = abs((datetime.datetime.now(datetime.timezone.utc) - answer["LastModified"]).total_seconds())
        assert age < 300, f"last modified {age} s away"
    s3.put_object(Bucket=name, Key="bare", Body=b"x")
    expect(s3.head_object(Bucket=name, Key="bare")["ContentType"], "binary/octet-stream")
    expect(s3.head_object(Bucket=name, Key="bare")["Metadata"], {})
    big = {"a": "x" * 2047}
    s3.put_object(Bucket=name, Key="bare", Body=b"x", Metadata=big)
    expect(s3.head_object(Bucket=name, Key="bare")["Metadata"], big)
    refused("MetadataTooLarge", 400, s3.put_object, Bucket=name, Key="bare", Body=b"", Metadata={"a": "x" * 2048})


@case
def response_overrides():
    name = bucket("main")
    s3.put_object(Bucket=name, Key="override", Body=b"x", ContentType="text/plain", CacheControl="no-cache")
    wanted = dict(
        ResponseContentType="application/json",
        ResponseCacheControl="max-age=1",
        ResponseContentDisposition="inline",
        ResponseContentEncoding="br",
        ResponseContentLanguage="fr",
        ResponseExpires=datetime.datetime(2031, 1, 1),
    )
    headers = {
        "content-type": "application/json",
        "cache-control": "max-age=1",
        "content-disposition": "inline",
        "content-encoding": "br",
        "content-language": "fr",
        "expires": "Wed, 01 Jan 2031 00:00:00 GMT",
    }
    for call in [s3.get_object, s3.head_object]:
        got = call(Bucket=name, Key="override", **wanted)["ResponseMetadata"]["HTTPHeaders"]
        expect({header: got.get(header) for header in headers}, headers, call.__name__)


@case
def conditions_on_reads():
    name = bucket("main")
    etag = s3.put_object(Bucket=name, Key="cond", Body=b"abc")["ETag"]
    modified = s3.head_object(Bucket=name, Key="cond")["LastModified"]
    hour = datetime.timedelta(hours=1)
    holds = [
        dict(IfMatch=etag),
        dict(IfMatch=etag.strip('"')),
        dict(IfMatch="*"),
        dict(IfNoneMatch='"other"'),
        dict(IfModifiedSince=modified - hour),
        dict(IfUnmodifiedSince=modified),
        dict(IfUnmodifiedSince=modified + hour),
        dict(IfMatch=etag, IfUnmodifiedSince=modified - hour),
        dict(IfNoneMatch='"other"', IfModifiedSince=modified + hour),
    ]
    for call in [s3.get_object, s3.head_object]:
        for condition in holds:
            expect(call(Bucket=name, Key="cond", **condition)["ETag"], etag, condition)
        for condition in [dict(IfMatch='"other"'), dict(IfUnmodifiedSince=modified - hour)]:
            code = "412" if call == s3.head_object else "PreconditionFailed"
            refused(code, 412, call, Bucket=name, Key="cond", **condition)
        for condition in [dict(IfNoneMatch=etag), dict(IfNoneMatch="*"), dict(IfModifiedSince=modified)]:
            answer = refused("304", 304, call, Bucket=name, Key="cond", **condition)
            expect(answer["ResponseMetadata"]["HTTPHeaders"]["etag"], etag)


@case
def conditions_on_writes():
    name = bucket("main")
    etag = s3.put_object(Bucket=name, Key="cas", Body=b"1", IfNoneMatch="*")["ETag"]
    refused("PreconditionFailed", 412, s3.put_object, Bucket=name, Key="cas", Body=b"2", IfNoneMatch="*")
    refused("PreconditionFailed", 412, s3.put_object, Bucket=name, Key="cas", Body=b"2", IfMatch='"x"')
    refused("NoSuchKey", 404, s3.put_object, Bucket=name, Key="cas-absent", Body=b"2", IfMatch=etag)
    expect(read(name, "cas"), b"1")
    etag2 = s3.put_object(Bucket=name, Key="cas", Body=b"2", IfMatch=etag)["ETag"]
    refused("PreconditionFailed", 412, s3.delete_object, Bucket=name, Key="cas", IfMatch=etag)
    expect(read(name, "cas"), b"2")
    s3.delete_object(Bucket=name, Key="cas", IfMatch=etag2)
    absent(name, "cas")

    def put(index):
        try:
            s3.put_object(Bucket=name, Key="race", Body=b"%d" % index, IfNoneMatch="*")
            return index
        except ClientError as error:
            assert error.response["Error"]["Code"] in ("PreconditionFailed", "ConditionalRequestConflict"), error
            return None

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        winners = [index for index in pool.map(put, range(24)) if index is not None]
    expect(len(winners), 1, "winners of a race for an absent key")
    expect(read(name, "race"), b"%d" % winners[0])


# ---------------------------------------------------------------------------------------------------------------------
# Payload modes and checksums.


@case
def payload_modes():
    name = bucket("main")
    for length in [0, 1, 65535, 65536, 65537, 300_001]:
        data = content(length)
        path = f"/{name}/mode"
        trailer = ("x-amz-checksum-crc32", checksum("CRC32", data))
        answers = {
            "unsigned": lambda: raw("PUT", path, data, payload="UNSIGNED-PAYLOAD"),
            "signed": lambda: raw("PUT", path, data),
            "chunks": lambda: chunked(path, data, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            "chunks, trailer": lambda: chunked(path, data, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", trailer),
            "unsigned, trailer": lambda: chunked(path, data, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", trailer),
        }
        for mode, put in answers.items():
            answer = answered(put(), 200)
            expect(answer.headers["etag"], f'"{md5(data)}"', f"{mode}, {length} bytes")
            got = s3.get_object(Bucket=name, Key="mode")
            assert got["Body"].read() == data, f"{mode}, {length} bytes"
            assert "ContentEncoding" not in got, "aws-chunked was stored as the encoding"


@case
def checksums_in_headers_and_trailers():
    name = bucket("main")
    data = content(100_001)
    for algorithm in ALGORITHMS:
        header = f"x-amz-checksum-{algorithm.lower()}"
        right, wrong = checksum(algorithm, data), checksum(algorithm, data + b"x")
        puts = {
            "header": lambda value: raw("PUT", f"/{name}/sum", data, headers={header: value}),
            "trailer": lambda value: chunked(f"/{name}/sum", data, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", (header, value)),
            "signed trailer": lambda value: chunked(
                f"/{name}/sum", data, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", (header, value)
            ),
        }
        for form, put in puts.items():
            what = f"{algorithm} {form}"
            s3.delete_object(Bucket=name, Key="sum")
            answered(put(wrong), 400, "BadDigest")
            absent(name, "sum")
            answer = answered(put(right), 200)
            expect((answer.headers[header], answer.headers["x-amz-checksum-type"]), (right, "FULL_OBJECT"), what)
            for call in [s3.get_object, s3.head_object]:
                got = call(Bucket=name, Key="sum", ChecksumMode="ENABLED")
                expect((got[f"Checksum{algorithm}"], got["ChecksumType"]), (right, "FULL_OBJECT"), what)
            quiet = raw("GET", f"/{name}/sum")
            assert header not in quiet.headers, "a checksum nobody asked for"
            partial = raw("GET", f"/{name}/sum", headers={"range": "bytes=0-9", "x-amz-checksum-mode": "ENABLED"})
            assert header not in partial.headers, "the checksum of the whole on a part of it"
        answered(raw("PUT", f"/{name}/sum", data, headers={header: "AAAA"}), 400, "InvalidRequest")
        attributes = s3.get_object_attributes(
            Bucket=name, Key="sum", ObjectAttributes=["ETag", "Checksum", "ObjectSize", "StorageClass"]
        )
        expect(attributes["Checksum"][f"Checksum{algorithm}"], right)
        expect((attributes["ObjectSize"], attributes["ETag"]), (len(data), md5(data)))
    plain = client(request_checksum_calculation="when_required")
    plain.put_object(Bucket=name, Key="sum", Body=data)
    got = s3.head_object(Bucket=name, Key="sum", ChecksumMode="ENABLED")
    expect(got["ChecksumCRC64NVME"], checksum("CRC64NVME", data), "the default checksum")
    two = {"x-amz-checksum-crc32": checksum("CRC32", data), "x-amz-checksum-sha1": checksum("SHA1", data)}
    answered(raw("PUT", f"/{name}/sum", data, headers=two), 400, "InvalidRequest")
    answered(raw("PUT", f"/{name}/sum", data, headers={"x-amz-sdk-checksum-algorithm": "SHA1"}), 400, "InvalidRequest")
    for algorithm in ["CRC32", "SHA1", "SHA256"]:
        s3.put_object(Bucket=name, Key="sum", Body=data, ChecksumAlgorithm=algorithm)
        expect(read(name, "sum", ChecksumMode="ENABLED"), data)


@case
def bodies_that_are_not_what_they_say():
    name = bucket("main")
    data = content(200_000)
    path = f"/{name}/bad"
    mode, trailing = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    trailer = ("x-amz-checksum-crc32", checksum("CRC32", data))
    wrong_md5 = b64(hashlib.md5(b"other").digest())
    cases = [
        ("sha256 of other bytes", raw("PUT", path, data, payload=hashlib.sha256(b"").hexdigest()), "XAmzContentSHA256Mismatch"),
        ("chunk signature", chunked(path, data, mode, spoil=1), "SignatureDoesNotMatch"),
        ("last chunk signature", chunked(path, data, mode, spoil=4), "SignatureDoesNotMatch"),
        ("declared too long", chunked(path, data, mode, declared=len(data) + 1), "IncompleteBody"),
        ("declared too short", chunked(path, data, mode, declared=len(data) - 1), "IncompleteBody"),
        ("unsigned, declared too long", chunked(path, data, trailing, trailer, declared=len(data) + 1), "IncompleteBody"),
        ("unsigned, declared too short", chunked(path, data, trailing, trailer, declared=len(data) - 1), "IncompleteBody"),
        ("chunks cut off", chunked(path, data, mode, cut=150_000), "IncompleteBody"),
        ("content-md5", raw("PUT", path, data, headers={"content-md5": wrong_md5}), "BadDigest"),
        ("content-md5, not base64", raw("PUT", path, data, headers={"content-md5": "nonsense"}), "InvalidDigest"),
    ]
    for what, answer, code in cases:
        expect(answer.code, code, what)
        assert answer.status in (400, 403), what
        absent(name, "bad")
    missing = chunked(path, data, trailing, None, headers={"x-amz-trailer": "x-amz-checksum-crc32"})
    assert missing.status == 400, missing.body
    absent(name, "bad")
    right_md5 = b64(hashlib.md5(data).digest())
    answered(raw("PUT", path, data, headers={"content-md5": right_md5}), 200)
    s3.delete_object(Bucket=name, Key="bad")


@case
def bodies_cut_off():
    name = bucket("main")
    data = content(3 * MIB)
    for sent in [0, 1, 65536, 2 * MIB]:
        signed = Signed("PUT", f"/{name}/cut", {}, {}, "UNSIGNED-PAYLOAD")
        connection = connect()
        connection.putrequest("PUT", f"/{name}/cut", skip_host=True, skip_accept_encoding=True)
        for header, value in signed.headers.items():
            connection.putheader(header, value)
        connection.putheader("content-length", str(len(data)))
        connection.endheaders()
        connection.send(data[:sent])
        connection.sock.close() if sent % 2 else connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        time.sleep(0.05)
        absent(name, "cut")
    no_length = raw("PUT", f"/{name}/cut", headers={"transfer-encoding": "chunked"}, payload="UNSIGNED-PAYLOAD", length=False)
    answered(no_length, 411, "MissingContentLength")
    absent(name, "cut")


@case
def bodies_side_by_side_are_digested_each_for_itself():
    """Bodies of one core share the lanes of its MD5: of every length, in other slices each, some of them cut off."""
    name = bucket("main")
    lengths = [1, 40_000, 131_072, 262_145, 1_000_003, 3 * MIB, 200_000, 5 * MIB + 1]

    def put(index):
        key, data = f"side-{index}", content(lengths[index % len(lengths)], index)
        signed = Signed("PUT", f"/{name}/{key}", {}, {}, "UNSIGNED-PAYLOAD")
        is_cut_off = index % 5 == 4
        connection = connect()
        try:
            connection.putrequest("PUT", f"/{name}/{key}", skip_host=True, skip_accept_encoding=True)
            for header, value in signed.headers.items():
                connection.putheader(header, value)
            connection.putheader("content-length", str(len(data)))
            if index % 3 == 0:
                connection.putheader("content-md5", b64(hashlib.md5(data).digest()))
            connection.endheaders()
            step = [3 * KIB, 70_000, MIB][index % 3]
            for at in range(0, len(data) // 2 if is_cut_off else len(data), step):
                connection.send(data[at : min(at + step, len(data))])
            if not is_cut_off:
                response = connection.getresponse()
                response.read()
                expect((response.status, response.getheader("etag")), (200, '"%s"' % hashlib.md5(data).hexdigest()), key)
        finally:
            connection.close()
        return None if is_cut_off else key

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        keys = [key for key in pool.map(put, range(64)) if key]
    expect(len(keys), 52, "bodies that were sent whole")
    for key in keys:
        s3.delete_object(Bucket=name, Key=key)


@case
def a_chunk_larger_than_its_cap():
    name = bucket("main")
    if not MEMORY:
        return  # the cap is a setting; the test server sets 1 MiB
    mode = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    data = content(2 * MIB)
    answered(chunked(f"/{name}/cap", data, mode, chunk=MIB + 1), 400, "InvalidRequest")
    absent(name, "cap")
    answered(chunked(f"/{name}/cap", data, mode, chunk=MIB), 200)
    trailer = ("x-amz-checksum-crc32", checksum("CRC32", data))
    answered(chunked(f"/{name}/cap", data, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", trailer, chunk=2 * MIB), 200)


# ---------------------------------------------------------------------------------------------------------------------
# Signatures.


@case
def signatures():
    name = bucket("main")
    s3.put_object(Bucket=name, Key="signed", Body=b"x")
    path = f"/{name}/signed"
    answered(send("GET", path, {"host": URL.netloc}), 403, "AccessDenied")
    answered(raw("GET", path, secret="wrong"), 403, "SignatureDoesNotMatch")
    answered(raw("GET", path, key="NOSUCHKEY"), 403, "InvalidAccessKeyId")
    now = datetime.datetime.now(datetime.timezone.utc)
    for minutes in (-20, 20):
        late = raw("GET", path, at=now + datetime.timedelta(minutes=minutes))
        answered(late, 403, "RequestTimeTooSkewed")
    signed = Signed("GET", path, {}, {}, EMPTY_SHA256)
    answered(send("GET", path, signed.headers), 200)
    answered(send("GET", f"/{name}/other", signed.headers), 403, "SignatureDoesNotMatch")
    answered(send("GET", path, {**signed.headers, "x-amz-meta-added": "1"}), 403, "AccessDenied")
    signed = Signed("PUT", path, {}, {}, "UNSIGNED-PAYLOAD")
    added = {**signed.headers, "x-amz-copy-source": f"/{name}/signed", "content-length": "0"}
    answered(send("PUT", path, added), 403, "AccessDenied")
    expect(read(name, "signed"), b"x")


@case
def plain_reads_are_answered_as_all_others():
    """A GET in whose path something is encoded takes the long way; both ways have to end in the same answer."""
    name = bucket("main")
    s3.put_object(Bucket=name, Key="ways/small", Body=content(4096), ChecksumAlgorithm="SHA256")
    s3.put_object(Bucket=name, Key="ways/empty", Body=b"")
    s3.put_object(
        Bucket=name, Key="ways/described", Body=content(3_000_000), CacheControl="no-cache", ContentDisposition="inline",
        ContentEncoding="gzip", ContentLanguage="de", ContentType="text/plain", Expires="Wed, 21 Oct 2015 07:28:00 GMT",
        Metadata={"one": "1", "words": "a  b", "none": ""},
    )  # fmt: skip
    answered(raw("PUT", f"/{name}/ways/umlaut", b"u", headers={"x-amz-meta-umlaut": "=?UTF-8?B?w7w=?="}), 200)
    upload_of(name, "ways/parts", [content(5 * MIB, 1), content(100, 2)])

    def comparable(answer):
        headers = {k: v for k, v in answer.headers.items() if k not in ("date", "x-amz-request-id")}
        if answer.status >= 300:  # error bodies name the request, and headers tell their length
            headers.pop("content-length", None)
            return answer.status, headers, re.sub(rb"<RequestId>[^<]*</RequestId>", b"", answer.body)
        return answer.status, headers, answer.body

    def both(what, path, query=None, headers=None, payload=EMPTY_SHA256, added=None, **signing):
        signed = Signed("GET", path, query or {}, headers or {}, payload, **signing)
        words = "?" + signed.query if signed.query else ""
        long = f"{path[:-1]}%{ord(path[-1]):02X}"
        answers = [send("GET", target + words, {**signed.headers, **(added or {})}) for target in (path, long)]
        expect(comparable(answers[0]), comparable(answers[1]), what)
        return answers[0]

    for key, length in [("small", 4096), ("empty", 0), ("described", 3_000_000), ("umlaut", 1), ("parts", 5 * MIB + 100)]:
        path = f"/{name}/ways/{key}"
        expect(len(both(key, path).body), length, key)
        both(key, path, query={"x-id": "GetObject"})
        both(key, path, payload="UNSIGNED-PAYLOAD")
        summed = both(key, path, headers={"x-amz-checksum-mode": "ENABLED"})
        assert any(header.startswith("x-amz-checksum-") for header in summed.headers), summed.headers
        for bytes_ in ["0-9", "10-", "-7", "0-", "0-99999999", "99999999-", "-0", "9-1", "x"]:
            both(f"{key} {bytes_}", path, headers={"range": f"bytes={bytes_}", "x-amz-checksum-mode": "ENABLED"})
    path = f"/{name}/ways/small"
    answered(both("absent", f"/{name}/ways/absent"), 404, "NoSuchKey")
    answered(both("no bucket", "/no-such-bucket-at-all/key"), 404, "NoSuchBucket")
    answered(both("bad bucket", "/No_Such/key"), 400, "InvalidBucketName")
    answered(both("wrong secret", path, secret="wrong"), 403, "SignatureDoesNotMatch")
    answered(both("nobody", path, key="NOSUCHKEY"), 403, "InvalidAccessKeyId")
    late = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=20)
    answered(both("late", path, at=late), 403, "RequestTimeTooSkewed")
    answered(both("unsigned", path, added={"x-amz-checksum-mode": "ENABLED"}), 403, "AccessDenied")
    answered(both("another range", path, headers={"range": "bytes=0-1"}, added={"range": "bytes=0-2"}), 403, "SignatureDoesNotMatch")
    answered(both("token", path, headers={"x-amz-security-token": "t"}), 200)


@case
def presigned():
    name = bucket("main")
    data = content(100_000)

    def fetch(method, url, body=None):
        parts = urllib.parse.urlsplit(url)
        target = parts.path + "?" + parts.query
        headers = {"host": parts.netloc}
        if body is not None:
            headers["content-length"] = len(body)
        return send(method, target, headers, body or b"")

    sign = lambda call, **keywords: s3.generate_presigned_url(call, Params=dict(Bucket=name, Key="pre", **keywords), ExpiresIn=60)
    answered(fetch("PUT", sign("put_object"), data), 200)
    expect(fetch("GET", sign("get_object")).body, data)
    typed = fetch("GET", sign("get_object", ResponseContentType="a/b"))
    expect(typed.headers["content-type"], "a/b")
    url = sign("get_object")
    answered(fetch("GET", url.replace("/pre?", "/pra?")), 403, "SignatureDoesNotMatch")
    flipped = url[:-1] + ("0" if url[-1] != "0" else "1")
    answered(fetch("GET", flipped), 403, "SignatureDoesNotMatch")
    answered(fetch("GET", url + "0"), 400, "AuthorizationQueryParametersError")
    answered(fetch("PUT", url, b"x"), 403, "SignatureDoesNotMatch")
    short = s3.generate_presigned_url("get_object", Params=dict(Bucket=name, Key="pre"), ExpiresIn=1)
    time.sleep(2.2)
    expired = answered(fetch("GET", short), 403, "AccessDenied")
    assert b"Request has expired" in expired.body, expired.body
    long = s3.generate_presigned_url("get_object", Params=dict(Bucket=name, Key="pre"), ExpiresIn=8 * 86400)
    answered(fetch("GET", long), 400, "AuthorizationQueryParametersError")


# ---------------------------------------------------------------------------------------------------------------------
# Keys.

KEYS = ["a", "a/", "a/b", "a//b", "a//", ".", "..", "./x", "../x", "x/./y", "x/../y", "/", "//", "/lead", "trail/",
        " ", "a b", "a+b", "a%b", "a%2Fb", "ü", "日本語/キー", "🦀", "?", "a&b=c", "#", "quote\"'<>", "a;b", "~", "*", "k" * 1024,
        "é" * 512, "d/" * 512, "tab\tkey", "a\\b", "\u0001control", "null", "a:b@c"]


def path_of(name, key):
    return f"/{name}/" + urllib.parse.quote(key, safe="/-_.~")


@case
def every_key_is_its_own():
    name = bucket("keys")
    for index, key in enumerate(KEYS):
        answered(raw("PUT", path_of(name, key), b"%d" % index), 200)
    for index, key in enumerate(KEYS):
        answer = answered(raw("GET", path_of(name, key)), 200)
        expect(answer.body, b"%d" % index, repr(key[:40]))
    listed = []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name, PaginationConfig={"PageSize": 7}):
        listed += [o["Key"] for o in page.get("Contents", [])]
    expect(listed, sorted(KEYS, key=lambda key: key.encode()))
    answered(raw("GET", f"/{name}", query={"list-type": "2"}), 400, "InvalidRequest")  # XML can't carry \x01
    for key in KEYS:
        answered(raw("DELETE", path_of(name, key)), 204)
    expect(s3.list_objects_v2(Bucket=name)["KeyCount"], 0)


@case
def bad_keys():
    name = bucket("main")
    for key in ["k" * 1025, "é" * 513]:
        for method in ["PUT", "GET", "DELETE"]:
            answered(raw(method, path_of(name, key)), 400, "KeyTooLongError")
    for bad in ["%ff", "a%80b", "%c3%28", "%ed%a0%80"]:
        answer = raw("PUT", f"/{name}/{bad}", b"x")
        expect((answer.status, answer.code), (400, "InvalidURI"), bad)
    deleted = s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "k" * 1025}, {"Key": "fine"}]}, BypassGovernanceRetention=True)
    expect([e["Code"] for e in deleted["Errors"]], ["KeyTooLongError"])
    expect([d["Key"] for d in deleted["Deleted"]], ["fine"])


# ---------------------------------------------------------------------------------------------------------------------
# Listings.


def model(keys, prefix="", delimiter="", after=""):
    """What a listing holds: keys and common prefixes in byte order."""
    found = []
    for key in sorted(keys, key=str.encode):
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        entry = key if at < 0 else key[: at + len(delimiter)]
        if after and entry.encode() <= after.encode():
            continue
        if not found or found[-1] != (entry, at >= 0):
            found.append((entry, at >= 0))
    return found


LIST_KEYS = ["a", "a/", "a/1", "a/2", "a/b/c", "a/b/d", "a//x", "a-b", "a.b", "a0", "b/", "b/x/y/z", "c", "cc/dd--ee",
             "cc/dd--ff", "cc/dd", "ü/ö", "ü", "z z/1", "z+z", "Z", "~", "0"]


def entries(page):
    found = [(o["Key"], False) for o in page.get("Contents", page.get("Versions", []))]
    found += [(p["Prefix"], True) for p in page.get("CommonPrefixes", [])]
    return sorted(found, key=lambda entry: entry[0].encode())


@case
def listings_agree_with_the_model():
    name = bucket("list")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3.put_object(Bucket=name, Key=key, Body=key.encode()), LIST_KEYS))
    for prefix in ["", "a", "a/", "a/b", "b/", "cc/", "ü", "ü/", "nothing", "z "]:
        for delimiter in ["", "/", "--", "b", "//"]:
            expected = model(LIST_KEYS, prefix, delimiter)
            for size, calls in [(3, ["list_objects_v2"]), (2, ["list_objects"]), (4, ["list_object_versions"])]:
                what = f"prefix {prefix!r} delimiter {delimiter!r} page {size}"
                asked = dict(Bucket=name, Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": size})
                for call in calls:
                    found = []
                    for page in s3.get_paginator(call).paginate(**asked):
                        assert len(entries(page)) <= size, what
                        found += entries(page)
                    expect(found, expected, f"{call} {what}")
    found = []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name, Delimiter="/", PaginationConfig={"PageSize": 1}):
        found += entries(page)
    expect(found, model(LIST_KEYS, "", "/"), "pages of one")
    sizes = {o["Key"]: (o["Size"], o["ETag"]) for o in s3.list_objects_v2(Bucket=name)["Contents"]}
    expect(sizes, {key: (len(key.encode()), f'"{md5(key.encode())}"') for key in LIST_KEYS})


@case
def listing_parameters():
    name = bucket("list2")
    keys = [f"k{i:03}" for i in range(25)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: s3.put_object(Bucket=name, Key=key, Body=b"x"), keys))
    for after in ["", "k", "k010", "k0105", "k024", "z"]:
        expect(entries(s3.list_objects_v2(Bucket=name, StartAfter=after)), model(keys, after=after), after)
        expect(entries(s3.list_objects(Bucket=name, Marker=after)), model(keys, after=after), after)
        expect(entries(s3.list_object_versions(Bucket=name, KeyMarker=after)), model(keys, after=after), after)
    page = s3.list_objects_v2(Bucket=name, MaxKeys=0)
    expect((page["KeyCount"], page["IsTruncated"]), (0, False))
    page = s3.list_objects_v2(Bucket=name, MaxKeys=25)
    expect((page["KeyCount"], page["IsTruncated"], "NextContinuationToken" in page), (25, False, False))
    page = s3.list_objects_v2(Bucket=name, MaxKeys=24)
    expect((page["KeyCount"], page["IsTruncated"]), (24, True))
    rest = s3.list_objects_v2(Bucket=name, ContinuationToken=page["NextContinuationToken"])
    expect([o["Key"] for o in rest["Contents"]], ["k024"])
    assert "Owner" not in page["Contents"][0]
    assert s3.list_objects_v2(Bucket=name, FetchOwner=True)["Contents"][0]["Owner"]["ID"]
    assert s3.list_objects(Bucket=name)["Contents"][0]["Owner"]["ID"]
    version = s3.list_object_versions(Bucket=name)["Versions"][0]
    expect((version["VersionId"], version["IsLatest"]), ("null", True))
    expect(s3.list_objects_v2(Bucket=name, ContinuationToken="")["KeyCount"], s3.list_objects_v2(Bucket=name)["KeyCount"])
    refused("InvalidArgument", 400, s3.list_objects_v2, Bucket=name, ContinuationToken="nonsense!")
    refused("InvalidArgument", 400, s3.list_objects_v2, Bucket=name, MaxKeys=-1)
    answered(raw("GET", f"/{name}", query={"encoding-type": "rot13"}), 400, "InvalidArgument")
    expect(read(name, "k001", VersionId="null"), b"x")
    refused("NoSuchVersion", 404, s3.get_object, Bucket=name, Key="k001", VersionId="abc")
    page = s3.list_objects_v2(Bucket=name, MaxKeys=3)
    s3.delete_object(Bucket=name, Key="k002")  # the last key of the page; the token still goes on behind it
    rest = s3.list_objects_v2(Bucket=name, ContinuationToken=page["NextContinuationToken"])
    expect(rest["Contents"][0]["Key"], "k003")


@case
def more_than_a_page():
    name = bucket("many")
    keys = [f"{i % 7}/{i:05}" for i in range(1203)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: s3.put_object(Bucket=name, Key=key, Body=b""), keys))
    first = s3.list_objects_v2(Bucket=name)
    expect((first["KeyCount"], first["IsTruncated"]), (1000, True))
    found = []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=name):
        found += [o["Key"] for o in page.get("Contents", [])]
    expect(found, sorted(keys))
    too_many = {"Objects": [{"Key": key} for key in keys[:1001]]}
    refused("MalformedXML", 400, s3.delete_objects, Bucket=name, Delete=too_many)
    for at in range(0, len(keys), 1000):
        part = {"Objects": [{"Key": key} for key in keys[at : at + 1000]]}
        deleted = s3.delete_objects(Bucket=name, Delete=part)
        expect(len(deleted["Deleted"]), len(keys[at : at + 1000]))
    expect(s3.list_objects_v2(Bucket=name)["KeyCount"], 0)


@case
def multi_delete():
    name = bucket("main")
    etag = s3.put_object(Bucket=name, Key="md/1", Body=b"1")["ETag"]
    s3.put_object(Bucket=name, Key="md/2", Body=b"2")
    s3.put_object(Bucket=name, Key="md/3", Body=b"3")
    objects = [
        {"Key": "md/1", "ETag": etag},
        {"Key": "md/2", "ETag": '"other"'},
        {"Key": "md/3", "VersionId": "null"},
        {"Key": "md/absent"},
        {"Key": "md/2", "VersionId": "xyz"},
    ]
    result = s3.delete_objects(Bucket=name, Delete={"Objects": objects})
    expect(sorted(d["Key"] for d in result["Deleted"]), ["md/1", "md/3", "md/absent"])
    expect(sorted(e["Code"] for e in result["Errors"]), ["NoSuchVersion", "PreconditionFailed"])
    quiet = s3.delete_objects(Bucket=name, Delete={"Objects": [{"Key": "md/2"}], "Quiet": True})
    assert "Deleted" not in quiet and "Errors" not in quiet
    expect(s3.list_objects_v2(Bucket=name, Prefix="md/")["KeyCount"], 0)
    s3.put_object(Bucket=name, Key="md/4", Body=b"4")
    body = b"<Delete><Object><Key>md/4</Key></Object></Delete>"
    wrong = {"content-md5": b64(hashlib.md5(b"").digest())}
    answered(raw("POST", f"/{name}", body, {"delete": ""}, wrong), 400, "BadDigest")
    wrong = {"x-amz-checksum-crc32": checksum("CRC32", b"")}
    answered(raw("POST", f"/{name}", body, {"delete": ""}, wrong), 400, "BadDigest")
    expect(read(name, "md/4"), b"4")
    right = {"content-md5": b64(hashlib.md5(body).digest()), "x-amz-checksum-sha256": checksum("SHA256", body)}
    answered(raw("POST", f"/{name}", body, {"delete": ""}, right), 200)
    absent(name, "md/4")
    for bad in [b"<Delete>", b"<Delete></Delete>", b"nonsense"]:
        answered(raw("POST", f"/{name}", bad, {"delete": ""}), 400, "MalformedXML")


# ---------------------------------------------------------------------------------------------------------------------
# Copies.


@case
def copies():
    name, other = bucket("main"), bucket("other")
    data = content(1_500_000)
    key = "cp/quelle ü+%.bin"
    etag = s3.put_object(Bucket=name, Key=key, Body=data, ContentType="a/b", Metadata={"m": "1"}, ChecksumAlgorithm="SHA256")["ETag"]
    source = {"Bucket": name, "Key": key}
    result = s3.copy_object(Bucket=other, Key="cp", CopySource=source)["CopyObjectResult"]
    expect((result["ETag"], result["ChecksumSHA256"]), (etag, checksum("SHA256", data)))
    got = s3.get_object(Bucket=other, Key="cp")
    expect((got["Body"].read(), got["ContentType"], got["Metadata"]), (data, "a/b", {"m": "1"}))
    s3.copy_object(Bucket=other, Key="cp", CopySource=source, MetadataDirective="REPLACE", ContentType="c/d", Metadata={"n": "2"})
    head = s3.head_object(Bucket=other, Key="cp")
    expect((head["ContentType"], head["Metadata"]), ("c/d", {"n": "2"}))
    refused("InvalidRequest", 400, s3.copy_object, Bucket=name, Key=key, CopySource=source)
    s3.copy_object(Bucket=name, Key=key, CopySource=source, MetadataDirective="REPLACE", Metadata={"self": "1"})
    head = s3.head_object(Bucket=name, Key=key)
    expect((head["Metadata"], head["ContentLength"]), ({"self": "1"}, len(data)))
    changed = s3.copy_object(Bucket=other, Key="cp", CopySource=source, ChecksumAlgorithm="CRC32C")["CopyObjectResult"]
    expect(changed["ChecksumCRC32C"], checksum("CRC32C", data))
    modified = head["LastModified"]
    hour = datetime.timedelta(hours=1)
    for condition in [dict(CopySourceIfMatch=etag), dict(CopySourceIfNoneMatch='"x"'),
                      dict(CopySourceIfModifiedSince=modified - hour), dict(CopySourceIfUnmodifiedSince=modified + hour)]:
        s3.copy_object(Bucket=other, Key="cp2", CopySource=source, **condition)
    s3.delete_object(Bucket=other, Key="cp2")
    for condition in [dict(CopySourceIfMatch='"x"'), dict(CopySourceIfNoneMatch=etag),
                      dict(CopySourceIfModifiedSince=modified), dict(CopySourceIfUnmodifiedSince=modified - hour)]:
        refused("PreconditionFailed", 412, s3.copy_object, Bucket=other, Key="cp2", CopySource=source, **condition)
    absent(other, "cp2")
    refused("NoSuchKey", 404, s3.copy_object, Bucket=other, Key="cp2", CopySource={"Bucket": name, "Key": "absent"})
    gone = {"Bucket": f"kiseki-{RUN}-absent", "Key": "a"}
    refused("NoSuchBucket", 404, s3.copy_object, Bucket=other, Key="cp2", CopySource=gone)
    refused("NoSuchVersion", 404, s3.copy_object, Bucket=other, Key="cp2", CopySource=dict(source, VersionId="x"))
    s3.copy_object(Bucket=other, Key="cp2", CopySource=dict(source, VersionId="null"))
    s3.put_object(Bucket=name, Key="cp/0", Body=b"")
    s3.copy_object(Bucket=other, Key="cp0", CopySource={"Bucket": name, "Key": "cp/0"})
    expect(read(other, "cp0"), b"")


# ---------------------------------------------------------------------------------------------------------------------
# Multipart uploads.

PART = 5 * MIB


def upload_of(name, key, datas, create=None, part=None, complete=None):
    create, part, complete = create or {}, part or (lambda number, data: {}), complete or {}
    upload = s3.create_multipart_upload(Bucket=name, Key=key, **create)["UploadId"]
    parts = []
    for number, data in enumerate(datas, 1):
        answer = s3.upload_part(Bucket=name, Key=key, UploadId=upload, PartNumber=number, Body=data, **part(number, data))
        expect(answer["ETag"], f'"{md5(data)}"')
        named = {"ETag": answer["ETag"], "PartNumber": number}
        named.update({field: value for field, value in answer.items() if field.startswith("Checksum") and field != "ChecksumType"})
        parts.append(named)
    return s3.complete_multipart_upload(
        Bucket=name, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}, **complete
    )


@case
def multipart_life():
    name = bucket("mpu")
    datas = [content(PART, 1), content(PART + 1, 2), content(77, 3)]
    whole = b"".join(datas)
    joined = hashlib.md5(b"".join(hashlib.md5(data).digest() for data in datas)).hexdigest()
    done = upload_of(name, "big", datas, create=dict(ContentType="x/y", Metadata={"a": "b"}))
    expect((done["ETag"], done["Key"], done["Bucket"]), (f'"{joined}-3"', "big", name))
    got = s3.get_object(Bucket=name, Key="big")
    assert got["Body"].read() == whole
    expect((got["ETag"], got["ContentType"], got["Metadata"]), (f'"{joined}-3"', "x/y", {"a": "b"}))
    start = 0
    for number, data in enumerate(datas, 1):
        got = s3.get_object(Bucket=name, Key="big", PartNumber=number)
        assert got["Body"].read() == data, f"part {number}"
        expect((got["PartsCount"], got["ContentRange"]), (3, f"bytes {start}-{start + len(data) - 1}/{len(whole)}"))
        head = s3.head_object(Bucket=name, Key="big", PartNumber=number)
        expect((head["ContentLength"], head["PartsCount"]), (len(data), 3))
        start += len(data)
    refused("InvalidPartNumber", 416, s3.get_object, Bucket=name, Key="big", PartNumber=4)
    for first in [PART - 1, PART, 2 * PART, 2 * PART + 1]:
        assert read(name, "big", Range=f"bytes={first}-{first + 70000}") == whole[first : first + 70001]
    s3.put_object(Bucket=name, Key="plain", Body=b"abc")
    expect(read(name, "plain", PartNumber=1), b"abc")
    refused("InvalidPartNumber", 416, s3.get_object, Bucket=name, Key="plain", PartNumber=2)
    one = upload_of(name, "one", [b"small"])
    expect(one["ETag"], f'"{hashlib.md5(hashlib.md5(b"small").digest()).hexdigest()}-1"')
    expect(read(name, "one"), b"small")


@case
def multipart_refusals():
    name = bucket("mpu")
    key = "refused"
    upload = s3.create_multipart_upload(Bucket=name, Key=key)["UploadId"]
    absent(name, key)
    arguments = dict(Bucket=name, Key=key, UploadId=upload)
    complete = lambda parts, **more: s3.complete_multipart_upload(
        **arguments, MultipartUpload={"Parts": [{"PartNumber": n, "ETag": e} for n, e in parts]}, **more
    )
    small = s3.upload_part(**arguments, PartNumber=1, Body=b"small")["ETag"]
    last = s3.upload_part(**arguments, PartNumber=2, Body=b"last")["ETag"]
    refused("EntityTooSmall", 400, complete, [(1, small), (2, last)])
    refused("InvalidPart", 400, complete, [(1, '"' + "0" * 32 + '"')])
    refused("InvalidPart", 400, complete, [(9, small)])
    refused("InvalidPartOrder", 400, complete, [(2, last), (1, small)])
    refused("InvalidRequest", 400, complete, [(2, last)], MpuObjectSize=99)
    for number in (0, 10_001, -1):
        refused("InvalidArgument", 400, s3.upload_part, **arguments, PartNumber=number, Body=b"")
    refused("MalformedXML", 400, complete, [])
    answered(raw("POST", f"/{name}/{key}", b"nonsense", {"uploadId": upload}), 400, "MalformedXML")
    for bad in ["nonsense", "0" * 32]:
        other = dict(Bucket=name, Key=key, UploadId=bad)
        refused("NoSuchUpload", 404, s3.upload_part, **other, PartNumber=1, Body=b"")
        refused("NoSuchUpload", 404, s3.list_parts, **other)
        refused("NoSuchUpload", 404, s3.abort_multipart_upload, **other)
        parts = {"Parts": [{"PartNumber": 1, "ETag": small}]}
        refused("NoSuchUpload", 404, s3.complete_multipart_upload, **other, MultipartUpload=parts)
    refused("NoSuchUpload", 404, s3.upload_part, **dict(arguments, Key="elsewhere"), PartNumber=1, Body=b"")
    path = f"/{name}/{key}"
    wrong = raw("PUT", path, b"new", {"partNumber": "2", "uploadId": upload}, {"content-md5": b64(b"0" * 16)})
    answered(wrong, 400, "BadDigest")
    parts = s3.list_parts(**arguments)["Parts"]
    expect([(p["PartNumber"], p["ETag"], p["Size"]) for p in parts], [(1, small, 5), (2, last, 4)])
    absent(name, key)
    again = s3.upload_part(**arguments, PartNumber=1, Body=content(PART))["ETag"]
    refused("InvalidPart", 400, complete, [(1, small), (2, last)])
    first = complete([(1, again), (2, last)])
    assert read(name, key) == content(PART) + b"last"
    describe = lambda **page: s3.get_object_attributes(
        Bucket=name, Key=key, ObjectAttributes=["ObjectParts"], **page
    )["ObjectParts"]
    whole = describe()
    sizes = [(part["PartNumber"], part["Size"]) for part in whole["Parts"]]
    expect((sizes, whole["IsTruncated"], whole["TotalPartsCount"]), ([(1, PART), (2, 4)], False, 2))
    first_part = describe(MaxParts=1)
    expect((len(first_part["Parts"]), first_part["IsTruncated"], first_part["NextPartNumberMarker"]), (1, True, 1))
    expect([part["Size"] for part in describe(PartNumberMarker=1)["Parts"]], [4])
    # A client that lost the answer asks again; only the same parts in an object that is still there are success.
    expect(complete([(1, again), (2, last)])["ETag"], first["ETag"])
    refused("NoSuchUpload", 404, complete, [(1, again)])
    refused("NoSuchUpload", 404, complete, [(1, again), (2, last)], IfNoneMatch="*")
    refused("NoSuchUpload", 404, s3.list_parts, **arguments)
    s3.put_object(Bucket=name, Key=key, Body=b"another")
    refused("NoSuchUpload", 404, complete, [(1, again), (2, last)])
    refused("NoSuchUpload", 404, s3.list_parts, **arguments)
    s3.delete_object(Bucket=name, Key=key)


@case
def multipart_chooses_and_leaves_out_parts():
    name = bucket("mpu")
    upload = s3.create_multipart_upload(Bucket=name, Key="gaps")["UploadId"]
    etags = {}
    for number in [3, 1, 10_000, 7]:
        body = content(PART, number) if number != 10_000 else b"end"
        etags[number] = s3.upload_part(Bucket=name, Key="gaps", UploadId=upload, PartNumber=number, Body=body)["ETag"]
    chosen = {"Parts": [{"PartNumber": n, "ETag": etags[n]} for n in (1, 7, 10_000)]}
    s3.complete_multipart_upload(Bucket=name, Key="gaps", UploadId=upload, MultipartUpload=chosen)
    assert read(name, "gaps") == content(PART, 1) + content(PART, 7) + b"end"
    assert read(name, "gaps", PartNumber=2) == content(PART, 7)


@case
def multipart_conditions():
    name = bucket("mpu")
    etag = s3.put_object(Bucket=name, Key="cmc", Body=b"old")["ETag"]
    complete = lambda **condition: upload_of(name, "cmc", [b"new"], complete=condition)
    refused("PreconditionFailed", 412, complete, IfNoneMatch="*")
    refused("PreconditionFailed", 412, complete, IfMatch='"x"')
    expect(read(name, "cmc"), b"old")
    complete(IfMatch=etag)
    expect(read(name, "cmc"), b"new")
    s3.delete_object(Bucket=name, Key="cmc")
    complete(IfNoneMatch="*")
    expect(read(name, "cmc"), b"new")


@case
def multipart_checksums():
    name = bucket("mpu")
    datas = [content(PART, 11), content(1000, 12)]
    whole = b"".join(datas)
    for algorithm in ALGORITHMS:
        for kind in ("COMPOSITE", "FULL_OBJECT"):
            if (algorithm.startswith("SHA") and kind == "FULL_OBJECT") or (algorithm == "CRC64NVME" and kind == "COMPOSITE"):
                refused("InvalidRequest", 400, s3.create_multipart_upload, Bucket=name, Key="sums",
                        ChecksumAlgorithm=algorithm, ChecksumType=kind)
                continue
            field = f"Checksum{algorithm}"
            sums = [checksum(algorithm, data) for data in datas]
            create = dict(ChecksumAlgorithm=algorithm, ChecksumType=kind)
            part = lambda number, data: {field: sums[number - 1]}
            if kind == "FULL_OBJECT":
                expected = checksum(algorithm, whole)
                wrong = {field: checksum(algorithm, b""), "ChecksumType": kind}
                refused("BadDigest", 400, upload_of, name, "sums", datas, create, part, wrong)
                absent(name, "sums")
                done = upload_of(name, "sums", datas, create, part, {field: expected, "ChecksumType": kind})
            else:
                expected = b64(ALGORITHMS[algorithm](b"".join(base64.b64decode(value) for value in sums))) + "-2"
                done = upload_of(name, "sums", datas, create, part)
            expect((done[field], done["ChecksumType"]), (expected, kind), f"{algorithm} {kind}")
            head = s3.head_object(Bucket=name, Key="sums", ChecksumMode="ENABLED")
            expect((head[field], head["ChecksumType"]), (expected, kind))
            s3.delete_object(Bucket=name, Key="sums")
    upload = s3.create_multipart_upload(Bucket=name, Key="sums", ChecksumAlgorithm="SHA1")["UploadId"]
    arguments = dict(Bucket=name, Key="sums", UploadId=upload, PartNumber=1, Body=b"x")
    refused("InvalidRequest", 400, s3.upload_part, **arguments, ChecksumSHA256=checksum("SHA256", b"x"))
    refused("BadDigest", 400, s3.upload_part, **arguments, ChecksumSHA1=checksum("SHA1", b"y"))
    etag = s3.upload_part(**arguments, ChecksumSHA1=checksum("SHA1", b"x"))["ETag"]
    listed = s3.list_parts(Bucket=name, Key="sums", UploadId=upload)
    expect((listed["ChecksumAlgorithm"], listed["Parts"][0]["ChecksumSHA1"]), ("SHA1", checksum("SHA1", b"x")))
    wrong = {"Parts": [{"PartNumber": 1, "ETag": etag, "ChecksumSHA1": checksum("SHA1", b"y")}]}
    refused("InvalidPart", 400, s3.complete_multipart_upload, Bucket=name, Key="sums", UploadId=upload, MultipartUpload=wrong)
    s3.abort_multipart_upload(Bucket=name, Key="sums", UploadId=upload)
    refused("NoSuchUpload", 404, s3.list_parts, Bucket=name, Key="sums", UploadId=upload)
    default = client(request_checksum_calculation="when_required")
    upload = default.create_multipart_upload(Bucket=name, Key="sums")["UploadId"]
    etag = default.upload_part(Bucket=name, Key="sums", UploadId=upload, PartNumber=1, Body=b"abc")["ETag"]
    default.complete_multipart_upload(
        Bucket=name, Key="sums", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}
    )
    head = s3.head_object(Bucket=name, Key="sums", ChecksumMode="ENABLED")
    expect((head["ChecksumCRC64NVME"], head["ChecksumType"]), (checksum("CRC64NVME", b"abc"), "FULL_OBJECT"))


@case
def multipart_listings():
    name = bucket("mpl")
    keys = ["a", "a/1", "a/2", "b/c/1", "b/c/2", "d", "d", "ü"]
    uploads = [(key, s3.create_multipart_upload(Bucket=name, Key=key)["UploadId"]) for key in keys]
    for prefix in ["", "a", "a/", "b/", "x"]:
        for delimiter in ["", "/"]:
            expected = sorted({(k, i) for k, i in uploads if k.startswith(prefix) and (not delimiter or delimiter not in k[len(prefix):])})
            prefixes = sorted({k[: k.index(delimiter, len(prefix)) + 1] for k, _ in uploads
                               if delimiter and k.startswith(prefix) and delimiter in k[len(prefix):]})
            for size in [1, 2, 1000]:
                found, rolled = [], []
                asked = dict(Bucket=name, Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": size})
                for page in s3.get_paginator("list_multipart_uploads").paginate(**asked):
                    found += [(u["Key"], u["UploadId"]) for u in page.get("Uploads", [])]
                    rolled += [p["Prefix"] for p in page.get("CommonPrefixes", [])]
                expect(sorted(found), expected, f"{prefix!r} {delimiter!r} {size}")
                expect(rolled, prefixes, f"{prefix!r} {delimiter!r} {size}")
    key, upload = uploads[0]
    for number in range(1, 8):
        s3.upload_part(Bucket=name, Key=key, UploadId=upload, PartNumber=number * 3, Body=b"x" * number)
    for size in [1, 3, 7, 1000]:
        found = []
        for page in s3.get_paginator("list_parts").paginate(Bucket=name, Key=key, UploadId=upload, PaginationConfig={"PageSize": size}):
            assert len(page.get("Parts", [])) <= size
            found += [(p["PartNumber"], p["Size"]) for p in page.get("Parts", [])]
        expect(found, [(number * 3, number) for number in range(1, 8)], f"pages of {size}")
    for key, upload in uploads:
        s3.abort_multipart_upload(Bucket=name, Key=key, UploadId=upload)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=name)


@case
def multipart_copies():
    name = bucket("mpu")
    data = content(2 * PART + 500)
    s3.put_object(Bucket=name, Key="source", Body=data)
    source = {"Bucket": name, "Key": "source"}
    upload = s3.create_multipart_upload(Bucket=name, Key="assembled")["UploadId"]
    arguments = dict(Bucket=name, Key="assembled", UploadId=upload)
    spans = [(100, PART + 99), (PART + 100, len(data) - 1), (0, 99)]
    parts = []
    for number, (first, last) in enumerate(spans, 1):
        result = s3.upload_part_copy(**arguments, PartNumber=number, CopySource=source, CopySourceRange=f"bytes={first}-{last}")
        etag = result["CopyPartResult"]["ETag"]
        expect(etag, f'"{md5(data[first : last + 1])}"')
        parts.append({"PartNumber": number, "ETag": etag})
    for bad in ["bytes=0-", "bytes=-5", f"bytes=0-{len(data)}", "0-5", "bytes=9-5"]:
        refused("InvalidArgument", 400, s3.upload_part_copy, **arguments, PartNumber=4, CopySource=source, CopySourceRange=bad)
    refused("PreconditionFailed", 412, s3.upload_part_copy, **arguments, PartNumber=4, CopySource=source, CopySourceIfMatch='"x"')
    s3.complete_multipart_upload(**arguments, MultipartUpload={"Parts": parts})
    assert read(name, "assembled") == data[100:] + data[:100]
    upload = s3.create_multipart_upload(Bucket=name, Key="assembled")["UploadId"]
    arguments = dict(Bucket=name, Key="assembled", UploadId=upload)
    etag = s3.upload_part_copy(**arguments, PartNumber=1, CopySource=source)["CopyPartResult"]["ETag"]
    s3.complete_multipart_upload(**arguments, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    assert read(name, "assembled") == data


@case
def transfer_manager():
    """upload_file and download_file as applications use them: parts in parallel, ranges in parallel."""
    import io
    from boto3.s3.transfer import TransferConfig

    name = bucket("mpu")
    data = content(23 * MIB + 7)
    config = TransferConfig(multipart_threshold=8 * MIB, multipart_chunksize=8 * MIB, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(data), name, "managed", Config=config)
    target = io.BytesIO()
    s3.download_fileobj(name, "managed", target, Config=config)
    assert target.getvalue() == data
    s3.copy({"Bucket": name, "Key": "managed"}, name, "managed-copy", Config=config)
    assert read(name, "managed-copy") == data


# ---------------------------------------------------------------------------------------------------------------------
# HTTP.


@case
def connections_are_kept():
    name = bucket("main")
    s3.put_object(Bucket=name, Key="keep", Body=b"abc")
    connection = connect()
    sockets = set()
    for method, path in [("GET", "keep"), ("HEAD", "keep"), ("GET", "absent"), ("HEAD", "absent"), ("GET", "keep")]:
        signed = Signed(method, f"/{name}/{path}", {}, {}, EMPTY_SHA256)
        connection.request(method, f"/{name}/{path}", headers=signed.headers)
        sockets.add(connection.sock.getsockname())
        response = connection.getresponse()
        body = response.read()
        expect(response.status, 200 if path == "keep" else 404)
        if method == "HEAD":
            expect(body, b"")
    connection.close()
    expect(len(sockets), 1, "sockets used for five requests")


@case
def an_announced_body_that_was_not_read_ends_the_connection():
    """Otherwise the next request on the connection would be taken for the body."""
    name = bucket("main")
    upload = s3.create_multipart_upload(Bucket=name, Key="parts")["UploadId"]
    part = {"partNumber": "1", "uploadId": upload}
    refused_header = {"x-amz-tagging": "a=b"}
    for key, query, extra, keeps in [
        ("announced", {}, {}, True),
        ("parts", part, {}, True),  # a client that waits for the go-ahead would lose a second with each part
        ("refused", {}, refused_header, False),
    ]:
        for _ in range(20):
            path = f"/{name}/{key}"
            signed = Signed("PUT", path, query, extra, "UNSIGNED-PAYLOAD")
            first, target = signed.headers, path + ("?" + signed.query if query else "")
            second = Signed("GET", f"/{name}/absent", {}, {}, EMPTY_SHA256).headers
            wire = socket.create_connection((URL.hostname, URL.port or (443 if TLS else 80)), timeout=30)
            wire = TLS.wrap_socket(wire, server_hostname=URL.hostname) if TLS else wire
            lines = [f"{header}: {value}" for header, value in first.items()]
            head = [f"PUT {target} HTTP/1.1", "expect: 100-continue", "content-length: 3"] + lines
            wire.sendall("\r\n".join(head + ["", ""]).encode())
            stream = wire.makefile("rb")
            status = stream.readline()
            if keeps:
                expect(status, b"HTTP/1.1 100 Continue\r\n")
                stream.readline()
                wire.sendall(b"abc")
                status = stream.readline()
            expect(status[:12], b"HTTP/1.1 200" if keeps else b"HTTP/1.1 501")
            headers = http.client.parse_headers(stream)
            stream.read(int(headers.get("content-length", 0)))
            expect(headers.get("connection", "keep-alive"), "keep-alive" if keeps else "close")
            lines = [f"{header}: {value}" for header, value in second.items()]
            try:
                wire.sendall("\r\n".join([f"GET /{name}/absent HTTP/1.1"] + lines + ["", ""]).encode())
                expect(stream.readline()[:12], b"HTTP/1.1 404" if keeps else b"")
            except (ConnectionResetError, BrokenPipeError):
                assert not keeps
            wire.close()


@case
def subresources_are_never_taken_for_the_object():
    name, own = bucket("sub"), bucket("sub-empty")
    s3.put_object(Bucket=name, Key="k", Body=b"kept")
    upload = s3.create_multipart_upload(Bucket=name, Key="k")["UploadId"]
    for word in ["acl", "retention", "legal-hold", "torrent", "restore", "select", "attributes", "uploads", "tagging"]:
        answer = raw("DELETE", f"/{name}/k", query={word: ""})
        assert answer.status in (405, 501), (word, answer.status, answer.body)
    for word in ["torrent", "restore", "select", "attributes", "uploads"]:
        answer = raw("PUT", f"/{name}/k", b"other", query={word: ""})
        assert answer.status in (405, 501), (word, answer.status, answer.body)
    for query in [{"uploadId": upload}, {"partNumber": "1"}, {"versionId": "null"}]:
        answered(raw("PUT", f"/{name}/k", b"other", query=query), 400, "InvalidArgument")
    for word in ["acl", "versioning", "versions", "location", "uploads", "notification", "logging", "object-lock", "accelerate"]:
        answer = raw("DELETE", f"/{own}", query={word: ""})
        assert answer.status in (405, 501), (word, answer.status, answer.body)
    expect(read(name, "k"), b"kept")
    s3.head_bucket(Bucket=own)


@case
def nonsense_on_the_wire():
    answers = []
    for text in [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nhost: a\r\n\r\n",
                 b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 600_000 + b"\r\n\r\n", b"\x16\x03\x01\x00\x00"]:
        raw_socket = socket.create_connection((URL.hostname, URL.port or (443 if TLS else 80)), timeout=30)
        wrapped = TLS.wrap_socket(raw_socket, server_hostname=URL.hostname) if TLS else raw_socket
        try:
            wrapped.sendall(text)
            answers.append(wrapped.recv(4096)[:12])
        except OSError:
            answers.append(b"")
        finally:
            wrapped.close()
    assert all(answer == b"" or answer.startswith(b"HTTP/1.1 4") for answer in answers), answers
    s3.list_buckets()


@case
def methods_and_routes_that_are_not():
    name = bucket("main")
    for method, path in [("PATCH", f"/{name}/k"), ("POST", f"/{name}/k"), ("DELETE", "/"), ("PUT", "/")]:
        answer = raw(method, path, b"")
        assert answer.status in (400, 405, 501), (method, path, answer.status, answer.body)
    form = b'--b\r\nContent-Disposition: form-data; name="key"\r\n\r\nk\r\n--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'
    headers = {"host": URL.netloc, "content-type": "multipart/form-data; boundary=b", "content-length": len(form)}
    answer = send("POST", f"/{name}", headers, form)
    assert answer.status in (403, 501), answer.body


# ---------------------------------------------------------------------------------------------------------------------
# What only the test server can show.


@case
def tenants_do_not_meet():
    if not MEMORY:
        return
    name = bucket("main")
    s3.put_object(Bucket=name, Key="mine", Body=b"x")
    other = client("memory-other", "memory-other-secret")
    refused("NoSuchBucket", 404, other.get_object, Bucket=name, Key="mine")
    refused("NoSuchBucket", 404, other.get_object, Bucket=f"kiseki-{RUN}-never", Key="mine")
    refused("NoSuchBucket", 404, other.list_objects_v2, Bucket=name)
    refused("BucketAlreadyExists", 409, other.create_bucket, Bucket=name)
    expect([b["Name"] for b in other.list_buckets()["Buckets"]], [])
    refused("NoSuchBucket", 404, other.copy_object, Bucket=name, Key="k", CopySource={"Bucket": name, "Key": "mine"})
    owner = s3.get_bucket_acl(Bucket=name)["Owner"]["ID"]
    s3.get_object(Bucket=name, Key="mine", ExpectedBucketOwner=owner)
    refused("AccessDenied", 403, s3.get_object, Bucket=name, Key="mine", ExpectedBucketOwner="1" * 12)


@case
def engine_errors_become_awss():
    if not MEMORY:
        return
    name = bucket("main")
    refused("InsufficientStorage", 507, s3.put_object, Bucket=name, Key="fault/full", Body=b"x")
    refused("ServiceUnavailable", 503, s3.put_object, Bucket=name, Key="fault/unavailable", Body=b"x")
    data = content(1_000_000)
    s3.put_object(Bucket=name, Key="fault/damaged", Body=data)
    s3.put_object(Bucket=name, Key="fault/damaged-late", Body=data)
    refused("InternalError", 500, s3.get_object, Bucket=name, Key="fault/damaged")
    try:
        body = read(name, "fault/damaged-late")
        raise AssertionError(f"{len(body)} bytes of a damaged object came as if whole")
    except (botocore.exceptions.ResponseStreamingError, botocore.exceptions.IncompleteReadError,
            botocore.exceptions.ConnectionClosedError, http.client.IncompleteRead) as error:
        assert error


@case
def opaque_etags():
    if not MEMORY:
        return
    name = bucket("x-opaque")
    data = content(1000)
    etag = s3.put_object(Bucket=name, Key="k", Body=data)["ETag"]
    assert etag != f'"{md5(data)}"', etag
    expect(s3.head_object(Bucket=name, Key="k", IfMatch=etag)["ETag"], etag)
    answered(raw("PUT", f"/{name}/k2", data, headers={"content-md5": b64(b"0" * 16)}), 400, "BadDigest")
    absent(name, "k2")


@case
def silent_clients_are_dropped():
    if not MEMORY:
        return
    name = bucket("main")
    began = time.time()
    idle = socket.create_connection((URL.hostname, URL.port), timeout=20)
    half = socket.create_connection((URL.hostname, URL.port), timeout=20)
    half.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n")
    signed = Signed("PUT", f"/{name}/silent", {}, {}, "UNSIGNED-PAYLOAD")
    body = connect(20)
    body.putrequest("PUT", f"/{name}/silent", skip_host=True, skip_accept_encoding=True)
    for header, value in signed.headers.items():
        body.putheader(header, value)
    body.putheader("content-length", "100")
    body.endheaders()
    body.send(b"x")
    response = body.getresponse()
    expect(response.status, 400)
    assert b"<Code>RequestTimeout</Code>" in response.read()
    absent(name, "silent")
    for waiting in (idle, half):
        while waiting.recv(4096):
            pass
        waiting.close()
    body.close()
    assert time.time() - began < 15


@case
def clients_that_do_not_read_are_dropped():
    if not MEMORY:
        return
    name = bucket("main")
    s3.put_object(Bucket=name, Key="unread", Body=content(40 * MIB))
    signed = Signed("GET", f"/{name}/unread", {}, {}, EMPTY_SHA256)
    lazy = socket.create_connection((URL.hostname, URL.port), timeout=20)
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    head = f"GET /{name}/unread HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in signed.headers.items()) + "\r\n"
    lazy.sendall(head.encode())
    time.sleep(7)
    total = 0
    try:
        while piece := lazy.recv(1 << 20):
            total += len(piece)
    except ConnectionResetError:
        pass
    lazy.close()
    assert total < 39 * MIB, "the whole answer waited for a client that did not read"


# ---------------------------------------------------------------------------------------------------------------------


def main():
    passed, failed = 0, []
    for function in CASES:
        if ONLY and ONLY not in function.__name__:
            continue
        began = time.time()
        try:
            function()
            passed += 1
            print(f"ok    {function.__name__} ({time.time() - began:.1f} s)", flush=True)
        except Exception as error:  # a case may fail in any way; the others still run
            failed.append(function.__name__)
            print(f"FAIL  {function.__name__}: {type(error).__name__}: {error}", flush=True)
            if os.environ.get("VERBOSE"):
                traceback.print_exc()
    for name in list(BUCKETS):
        try:
            empty(name)
            s3.delete_bucket(Bucket=name)
        except Exception as error:
            failed.append(f"clean-up of {name}")
            print(f"FAIL  clean-up: {type(error).__name__}: {error}", flush=True)
    print(f"{passed} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
