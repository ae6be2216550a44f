#!/usr/bin/env bash
# Runs the store conformance suite against servers that others wrote: SeaweedFS (S3) and Azurite (Azure). Then a bucket is copied from the one to the other
# and back, and one lives in a bucket with object lock.
# Installs them into target/test-stores, starts them on loopback, stops them. Needs python3, npm and curl. Arguments go to the suite.
#
# There is none for Google: fake-gcs-server 1.54 and gcp-storage-emulator 2026.7 take writes through the JSON interface only ("400 invalid
# uploadType"), and object_store writes through the XML interface. With a bucket of one's own:
#   GOOGLE_APPLICATION_CREDENTIALS=key.json REPLICATED_TEST_GS=gs://bucket/path cargo test --test store_conformance google
set -euo pipefail
cd "$(dirname "$0")/.."
home=$PWD/target/test-stores
mkdir -p "$home"

bash scripts/seaweedfs.sh >/dev/null
[ -x "$home/node_modules/.bin/azurite-blob" ] || npm install --silent --prefix "$home" azurite@3

data=$(mktemp -d "$home/data.XXXXXX")
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  # SeaweedFS is slow to stop, and its data is not wanted.
  for pid in "${pids[@]}"; do
    for _ in $(seq 30); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$data"
}
trap stop EXIT

await() { # what, url
  for _ in $(seq 150); do
    curl --silent --output /dev/null --max-time 1 "$2" && return
    sleep 0.2
  done
  echo "$1 did not come up; its log:" >&2
  tail -20 "$data/$1.log" >&2
  return 1
}

key=conformance-key secret=conformance-secret
mkdir "$data/weed" "$data/azurite"
cat >"$data/s3.json" <<JSON
{"identities": [{"name": "test", "credentials": [{"accessKey": "$key", "secretKey": "$secret"}], "actions": ["Admin", "Read", "Write", "List"]}]}
JSON
"$home/venv/bin/weed" server -dir="$data/weed" -ip=127.0.0.1 -ip.bind=127.0.0.1 -master.telemetry=false \
  -volume.max=30 -master.volumeSizeLimitMB=64 -master.port=19333 -volume.port=18180 -filer.port=18888 \
  -s3 -s3.port=18333 -s3.config="$data/s3.json" >"$data/weed.log" 2>&1 &
pids+=($!)
"$home/node_modules/.bin/azurite-blob" --blobHost 127.0.0.1 --blobPort 18100 --location "$data/azurite" \
  --skipApiVersionCheck --disableTelemetry >"$data/azurite.log" 2>&1 &
pids+=($!)

await weed http://127.0.0.1:18333/
await azurite http://127.0.0.1:18100/

for _ in $(seq 50); do
  echo "s3.bucket.create -name conformance" | "$home/venv/bin/weed" shell -master=127.0.0.1:19333 -filer=127.0.0.1:18888 >"$data/shell.log" 2>&1 || true
  grep -q "created bucket" "$data/shell.log" && break
  sleep 0.3
done

# A bucket that keeps each version for a day.
python3 - "$key" "$secret" <<'PYTHON'
import datetime, hashlib, hmac, sys, urllib.request
key, secret = sys.argv[1:]
def put(path, query="", body=b"", **more):
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": "127.0.0.1:18333", "x-amz-date": stamp, "x-amz-content-sha256": digest, **{name.replace("_", "-"): value for name, value in more.items()}}
    names = ";".join(sorted(headers))
    lines = ["PUT", path, query + "=" if query else "", *[f"{name}:{headers[name]}" for name in sorted(headers)], "", names, digest]
    scope = f"{day}/us-east-1/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()])
    signing = ("AWS4" + secret).encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(signing, text.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={names}, Signature={signature}"
    url = f"http://127.0.0.1:18333{path}" + (f"?{query}" if query else "")
    urllib.request.urlopen(urllib.request.Request(url, data=body, method="PUT", headers=headers))
put("/locked", x_amz_bucket_object_lock_enabled="true")
rule = "<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule>"
put("/locked", "object-lock", f"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}</ObjectLockConfiguration>".encode())
PYTHON

# Azurite's well-known account, documented by Microsoft.
azure_account=devstoreaccount1
azure_key='Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=='
python3 - "$azure_account" "$azure_key" <<'PYTHON'
import base64, email.utils, hashlib, hmac, sys, urllib.request
account, key = sys.argv[1:]
headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
lines = ["PUT"] + [""] * 11 + [f"{name}:{headers[name]}" for name in sorted(headers)]
lines += [f"/{account}/{account}/conformance", "restype:container"]
signature = base64.b64encode(hmac.new(base64.b64decode(key), "\n".join(lines).encode(), hashlib.sha256).digest()).decode()
headers["Authorization"] = f"SharedKey {account}:{signature}"
url = f"http://127.0.0.1:18100/{account}/conformance?restype=container"
urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers))
PYTHON

export AWS_ACCESS_KEY_ID=$key AWS_SECRET_ACCESS_KEY=$secret AWS_REGION=us-east-1
export AZURE_STORAGE_ACCOUNT_KEY=$azure_key
export REPLICATED_TEST_S3='s3://conformance/replica?endpoint=http://127.0.0.1:18333'
export REPLICATED_TEST_S3_LOCKED='s3://locked/replica?endpoint=http://127.0.0.1:18333'
export REPLICATED_TEST_ABS="abs://$azure_account@conformance/replica?endpoint=http://127.0.0.1:18100/$azure_account"
cargo test -p replicated --test store_conformance --no-fail-fast -- --nocapture --test-threads=1 "$@"
cargo test -p replicated --test copy --test object_lock --no-fail-fast -- --nocapture --test-threads=1 real_stores
