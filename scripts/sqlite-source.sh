#!/usr/bin/env bash
# SQLite's sources as released, with its tests, in target/test-sqlite; fetched once. Prints the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
home=$PWD/target/test-sqlite

# As Debian 12 carries them: what tests/sqlite/expected.txt lists holds for this version of the suite.
version=3.40.1
urls="http://deb.debian.org/debian/pool/main/s/sqlite3/sqlite3_$version.orig.tar.xz
  https://snapshot.debian.org/archive/debian/20230101T000000Z/pool/main/s/sqlite3/sqlite3_$version.orig.tar.xz"
sha256=aaa776260ab4dc976db34aa7891819484c8676b5b2783123ebc6301e2ca5d655

source=$home/sqlite3-$version
# The last of the archive to be unpacked may be missing where that was interrupted: it is unpacked elsewhere and moved.
if [ ! -f "$source/configure" ]; then
  mkdir -p "$home"
  archive=$home/sqlite3_$version.orig.tar.xz
  if ! echo "$sha256  $archive" | sha256sum --check --status 2>/dev/null; then
    for url in $urls; do
      echo "fetching $url" >&2
      curl --fail --silent --show-error --location --connect-timeout 20 --retry 3 --output "$archive" "$url" || continue
      echo "$sha256  $archive" | sha256sum --check --status && break
      echo "$url is not what it should be (SHA-256)" >&2
    done
    echo "$sha256  $archive" | sha256sum --check --status 2>/dev/null || {
      rm -f "$archive"
      echo "SQLite's sources cannot be had from $(echo $urls): put sqlite3_$version.orig.tar.xz into $home" >&2
      exit 1
    }
  fi
  rm -rf "$source" "$home/unpacking"
  mkdir "$home/unpacking"
  tar -C "$home/unpacking" -xf "$archive"
  mv "$home/unpacking/sqlite3-$version" "$source"
  rmdir "$home/unpacking"
fi
echo "$source"
