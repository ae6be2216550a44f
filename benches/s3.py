"""As much of an S3 client as the benchmark needs: it looks for objects and puts some. Standard library only."""

import datetime
import hashlib
import hmac
import http.client
import re
import urllib.parse


class Client:
    def __init__(self, endpoint, key, secret, bucket="bench"):
        self.host = endpoint.removeprefix("http://")
        self.key, self.secret, self.bucket = key, secret, bucket
        self.connection = None

    def signed(self, method, path, query="", body=b""):
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": self.host, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        names = ";".join(headers)
        request = "\n".join([method, path, query, *[f"{name}:{text}" for name, text in headers.items()], "", names, digest])
        scope = f"{day}/us-east-1/s3/aws4_request"
        key = ("AWS4" + self.secret).encode()
        for part in (day, "us-east-1", "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        return headers | {"authorization": f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"}

    def send(self, method, path, query, body, headers):
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            self.connection.request(method, path + (f"?{query}" if query else ""), body=body or None, headers=headers)
            answer = self.connection.getresponse()
            return answer.status, answer.read()
        except (http.client.HTTPException, OSError):
            self.connection.close()
            self.connection = None
            raise

    def request(self, method, name, query="", body=b""):
        path = f"/{self.bucket}" + (f"/{urllib.parse.quote(name)}" if name else "")
        return self.send(method, path, query, body, self.signed(method, path, query, body))

    def put(self, name, body=b""):
        status, text = self.request("PUT", name, body=body)
        if status != 200:
            raise RuntimeError(f"PUT {name}: {status} {text[:200]!r}")

    def head(self, name):
        """A function that asks whether an object is there, signed once: it may be called for some minutes."""
        path = f"/{self.bucket}/{urllib.parse.quote(name)}"
        headers = self.signed("HEAD", path)
        return lambda: self.send("HEAD", path, "", b"", headers)[0] == 200

    def get(self, name):
        status, body = self.request("GET", name)
        if status != 200:
            raise RuntimeError(f"GET {name}: {status}")
        return body

    def list(self, prefix):
        names, after = [], ""
        while True:
            more = f"&start-after={urllib.parse.quote(after, safe='')}" if after else ""
            status, body = self.request("GET", "", f"list-type=2&prefix={urllib.parse.quote(prefix, safe='')}{more}")
            if status != 200:
                raise RuntimeError(f"list {prefix}: {status} {body[:200]!r}")
            found = [name for name in re.findall(r"<Key>([^<]+)</Key>", body.decode()) if name > after]
            names += found
            if not found or b"<IsTruncated>true" not in body:
                return names
            after = found[-1]
