#!/usr/bin/env bash
# Builds the container's image by its Dockerfile and starts the Compose file with it, by podman, against an S3 server: requests, the health check, a stop, an
# empty disk, a kill. As root, with podman, runc and (where the registry of the base images cannot be reached) debootstrap.
#
#     scripts/test-container.sh [--base-images pull|make] [--work FOLDER]
#
#   --base-images pull   from their registry; make: of Debian's packages, and this machine's Rust (default: make where they cannot be pulled)
#   --work FOLDER        for what is built and kept meanwhile, some 4 GB (default: a temporary one)
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
base='' work=''
while [ $# -gt 0 ]; do
    case $1 in
        --base-images | --work) [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; } ;;&
        --base-images) base=$2 ;;
        --work) work=$2 ;;
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "unknown flag $1; --help says which there are" >&2; exit 2 ;;
    esac
    shift 2
done
case $base in '' | pull | make) ;; *) echo "--base-images is pull or make; got $base" >&2; exit 2 ;; esac
for program in podman runc curl python3; do
    command -v $program >/dev/null || { echo "$program is needed: apt-get install podman runc curl python3" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "run this as root: images are built without a daemon" >&2; exit 2; }
own=''
[ -n "$work" ] || { work=$(mktemp -d) && own=$work; }
mkdir -p "$work"

# Neither a network of its own nor limits that only a privileged user could raise: it may run in a container itself.
export CONTAINERS_CONF=$work/containers.conf
limit=$(ulimit -Hn)
[ "$limit" != unlimited ] && [ "$limit" -lt 65536 ] || limit=65536
cat > "$CONTAINERS_CONF" <<CONF
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
netns = "host"
default_ulimits = ["nofile=$limit:$limit", "nproc=4096:4096"]
CONF

server='' container=notes_app_1
# The S3 server of the tests is this machine's own.
printf 'services:\n  app:\n    network_mode: host\n' > "$work/host.yaml"
compose() { "$work/venv/bin/podman-compose" --in-pod false -f "$root/deploy/container/compose.yaml" -f "$work/host.yaml" "$@"; }
clean() {
    podman rm -f $container >/dev/null 2>&1 || true
    podman volume rm -f notes_data >/dev/null 2>&1 || true
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$own" ] || rm -rf "$own"
}
trap clean EXIT

mounts=()
make_bases() {
    command -v debootstrap >/dev/null || { echo 'debootstrap is needed: apt-get install debootstrap' >&2; exit 2; }
    debootstrap --variant=minbase --include=ca-certificates bookworm "$work/debian" http://deb.debian.org/debian > "$work/debootstrap.log"
    tar -C "$work/debian" -c . | podman import - docker.io/library/debian:bookworm-slim
    mkdir -p "$work/rust"
    cat > "$work/rust/Containerfile" <<'RUST'
FROM docker.io/library/debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/local/rust/bin:$PATH CARGO_HOME=/usr/local/cargo
RUST
    podman build --isolation chroot -t "docker.io/library/$rust" "$work/rust"
    # The compiler is not copied into a layer, and what was downloaded once is used.
    mounts=(-v "$(rustc --print sysroot):/usr/local/rust:ro" -v "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry")
}

rust=$(sed -n 's/^FROM \(rust:[^ ]*\) AS .*/\1/p' "$root/deploy/container/Dockerfile")
if [ "$base" != make ] && podman pull -q "docker.io/library/$rust" docker.io/library/debian:bookworm-slim >/dev/null 2>&1; then
    echo 'the base images are those of the registry'
elif [ "$base" = pull ]; then
    echo 'the base images cannot be pulled; --base-images make makes them' >&2
    exit 1
else
    echo "the base images are made of Debian's packages and this machine's Rust"
    make_bases
fi

# As whoever builds it has it: a clone, without what lies about in a working directory.
git clone -q "$root" "$work/source"
podman build --isolation chroot --format docker --pull-never "${mounts[@]}" -f "$work/source/deploy/container/Dockerfile" -t notes "$work/source"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q podman-compose

cargo build -q --manifest-path "$root/Cargo.toml" -p replicated-testkit --bin replicated-s3
mkdir -p "$work/s3"
"$root/target/debug/replicated-s3" --root "$work/s3" > "$work/s3.env" &
server=$!
until grep -q '^$' "$work/s3.env"; do sleep 0.1; done
# shellcheck source=/dev/null
set -a && . "$work/s3.env" && set +a
export NOTES_REPLICA="s3://$REPLICATED_TEST_S3_BUCKET/notes?endpoint=$AWS_ENDPOINT_URL"

fails() { echo "$1" >&2; podman logs $container >&2 || true; exit 1; }
ready() {
    for _ in $(seq 600); do
        curl -sf http://127.0.0.1:8000/health >/dev/null && return
        sleep 0.1
    done
    fails 'the application is not ready after a minute'
}
add() { for note in "$@"; do curl -sf -H 'Content-Type: text/plain' --data-raw "$note" http://127.0.0.1:8000/notes >/dev/null || fails "$note was not added"; done; }
has() {
    found=$(curl -sf http://127.0.0.1:8000/notes | tr -d ' \n')
    [ "$found" = "$1" ] || fails "expected the notes $1, found $found"
}
up() { compose up -d --no-build >/dev/null 2>&1 || fails 'it does not start'; ready; }

up
has '[]'
add one two three
podman healthcheck run $container || fails 'the health check fails while all is well'
echo '1. it runs, and is healthy'

# What the stop leaves is in the bucket, and enough for a new disk. The lease is let go: nobody waits for it.
compose down -v >/dev/null 2>&1
up
has '["one","two","three"]'
echo '2. after a stop it begins from the bucket, with an empty disk'

# A kill leaves the rest on the disk; the next start sends it.
add four five
podman kill -s KILL $container >/dev/null
compose up -d --no-build >/dev/null 2>&1 || true
podman start $container >/dev/null 2>&1 || true
ready
has '["one","two","three","four","five"]'
compose down -v >/dev/null 2>&1
up
has '["one","two","three","four","five"]'
echo '3. after a kill it goes on with its disk, and the bucket has it all'
echo 'the container works'
