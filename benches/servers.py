"""The S3 servers, the network before them, and Litestream. Each is a process of its own that ends with the benchmark. Standard library only."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

from s3 import Client

HERE = os.path.dirname(os.path.abspath(__file__))
KEY, SECRET, BUCKET = "benchkey", "benchsecret", "bench"
PATIENCE_SECONDS = 120


def environment(endpoint=None, key=KEY, secret=SECRET):
    # A bundle of authorities is of no use without TLS, and Litestream's client does not start with one. What else is set is none of the benchmark's.
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("AWS_", "REPLICATED_", "LITESTREAM_"))}
    if endpoint:
        clean |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1", "REPLICATED_ENDPOINT": endpoint}
        clean |= {"REPLICATED_PATH_STYLE": "true", "REPLICATED_ALLOW_HTTP": "true", "REPLICATED_REGION": "us-east-1"}
    return clean


def wait_until(what, there, seconds=PATIENCE_SECONDS, pause=0.02):
    begun = time.monotonic()
    while not there():
        if time.monotonic() - begun > seconds:
            sys.exit(f"{what}: not within {seconds} s")
        time.sleep(pause)


def end(process, seconds=0.0):
    """Ends it at once, or after so long."""
    if process.poll() is None and seconds:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
    if process.poll() is None:
        process.kill()
    process.wait()


class Server:
    """What both have: an endpoint, also at a distance."""

    def __init__(self, name):
        self.name, self.networks, self.process, self.endpoint = name, {}, None, None
        self.key, self.secret = KEY, SECRET

    def at(self, delay_ms):
        """The endpoint behind a network of so many milliseconds there and back."""
        if not delay_ms:
            return self.endpoint
        if delay_ms not in self.networks:
            port = self.endpoint.rpartition(":")[2]
            proxy = subprocess.Popen([sys.executable, os.path.join(HERE, "delay.py"), port, str(delay_ms)], stdout=subprocess.PIPE, text=True)
            self.networks[delay_ms] = proxy, f"http://127.0.0.1:{int(proxy.stdout.readline())}"
        return self.networks[delay_ms][1]

    def environment(self, delay_ms=0):
        return environment(self.at(delay_ms), self.key, self.secret)

    def client(self, delay_ms=0):
        return Client(self.at(delay_ms), self.key, self.secret, BUCKET)

    def has_state(self, prefix):
        """Whether the whole state of a database is there: either tool writes it as a file that begins with TXID 1."""
        return any(f"/{1:016x}-" in name for name in self.client().list(prefix))

    def stop(self):
        for process in [proxy for proxy, _ in self.networks.values()] + ([self.process] if self.process else []):
            end(process)


class SeaweedFs(Server):
    def __init__(self, program, folder):
        super().__init__("SeaweedFS")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(os.path.join(folder, "data"))
        config = os.path.join(folder, "s3.json")
        identity = {"name": "bench", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List"]}
        with open(config, "w", encoding="utf-8") as out:
            json.dump({"identities": [identity]}, out)
        master, volume, filer, s3 = free_ports()
        with open(os.path.join(folder, "weed.log"), "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [program, "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-volume.max=200",
                 "-master.volumeSizeLimitMB=256", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={config}"],
                stdout=log, stderr=log, env=environment(),
            )  # fmt: skip
        self.endpoint = f"http://127.0.0.1:{s3}"

        def takes_objects():
            if self.process.poll() is not None:
                sys.exit(f"SeaweedFS ended; its log is {folder}/weed.log")
            try:
                self.client().put("")
            except (OSError, RuntimeError):
                pass
            try:
                self.client().put("there", b"x")
                return True
            except (OSError, RuntimeError):
                return False

        wait_until("SeaweedFS takes an object", takes_objects, pause=0.3)


class Own(Server):
    """The tests' server; it counts what it is asked for."""

    def __init__(self, program, folder):
        super().__init__("in-process")
        self.root = folder
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        self.process = subprocess.Popen(
            [program, "--counts", "--root", folder, "--bucket", BUCKET], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
        )
        given = {}
        for line in iter(self.process.stdout.readline, "\n"):
            if not line:
                sys.exit(f"{program} ended")
            name, _, text = line.rstrip("\n").partition("=")
            given[name] = text
        self.endpoint = given["REPLICATED_TEST_S3_ENDPOINT"]
        self.key, self.secret = given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"]

    def make_bucket(self, bucket):
        """A folder. Each listing goes through the whole bucket: many databases in one would measure that."""
        os.makedirs(os.path.join(self.root, bucket))

    def has_state(self, prefix, bucket=BUCKET):
        # In its folder: a request would be counted.
        return any(name.startswith(f"{1:016x}-") for _, _, names in os.walk(os.path.join(self.root, bucket, prefix.rstrip("/"))) for name in names)

    def counts(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def free_ports():
    """Four below 55,535: SeaweedFS listens at each of them plus 10,000 as well."""
    for base in range(21000, 31000, 7):
        held = []
        try:
            for port in [base + step + more for step in range(4) for more in (0, 10000)]:
                held.append(socket.socket())
                held[-1].bind(("127.0.0.1", port))
            return [base + step for step in range(4)]
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    sys.exit("no free ports")


# Beside its defaults: as often as it can be told to look.
TUNED = "10ms"


class Litestream:
    """The released program. `databases`: paths, and where in the bucket each goes, or in which folder where there is no server.
    `buckets`: of those that go to another bucket."""

    def __init__(self, program, server, databases, folder, tuned=False, delay_ms=0, buckets=None):
        config = os.path.join(folder, "litestream.yml")
        often = f"    monitor-interval: {TUNED}\n" if tuned else ""
        sent_often = f"      sync-interval: {TUNED}\n" if tuned else ""
        with open(config, "w", encoding="utf-8") as out:
            out.write("dbs:\n")
            for path, prefix in databases.items():
                where = f"type: file\n      path: {prefix}\n"
                if server:
                    where = f"type: s3\n      bucket: {(buckets or {}).get(path, BUCKET)}\n      path: {prefix}\n      endpoint: {server.at(delay_ms)}\n      region: us-east-1\n      force-path-style: true\n"
                out.write(f"  - path: {path}\n{often}    replica:\n      {where}{sent_often}")
        self.log = os.path.join(folder, "litestream.log")
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([program, "replicate", "-config", config], env=server.environment(delay_ms) if server else environment(), stdout=log, stderr=log)

    @property
    def pid(self):
        return self.process.pid

    def stop(self):
        end(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
