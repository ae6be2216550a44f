#!/usr/bin/env python3
"""Makes packages of what `make build` has built: a Python wheel, an npm package, a Debian package.

    scripts/package.py [--extension dist/replicated.so] [--preload dist/replicated-preload.so] [--tool dist/replicated] [--out dist/packages] [wheel] [npm] [deb]

Without a name all that this machine has the tools for. Standard library only; `npm` for the second and `dpkg-deb` for the third.
"""

import argparse
import base64
import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SUMMARY = "Continuous replication of SQLite databases to object storage, as a VFS in the application's own process"
LICENCES = ("LICENSE-MIT", "LICENSE-APACHE")
MACHINES = {"x86_64": ("x64", "amd64"), "aarch64": ("arm64", "arm64")}


def version():
    with open(os.path.join(ROOT, "Cargo.toml"), encoding="utf-8") as file:
        return re.search(r'^version = "([^"]+)"', file.read(), re.MULTILINE).group(1)


def text(name):
    with open(os.path.join(ROOT, "packaging", name), encoding="utf-8") as file:
        return file.read().replace("@VERSION@", version())


def licence(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def debian_copyright():
    """Both licences, as Debian's machine-readable form has them."""
    of_mit, _, mit = licence("LICENSE-MIT").partition("Permission")
    holder = re.search(r"Copyright \(c\) (.*)", of_mit).group(1)
    indented = "".join(f" {line}\n" if line else " .\n" for line in ("Permission" + mit).splitlines())
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: replicated\n\n"
        f"Files: *\nCopyright: {holder}\nLicense: Expat or Apache-2.0\n\n"
        f"License: Expat\n{indented}\n"
        "License: Apache-2.0\n The whole text is in /usr/share/common-licenses/Apache-2.0.\n"
    )


def needed_glibc(*files):
    """The newest minor version of glibc 2 whose symbols they need."""
    found = [0]
    for name in files:
        with open(name, "rb") as file:
            found += [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", file.read())]
    return max(found)


def wheel(arguments):
    """A wheel for any Python 3 on this kind of machine."""
    tag = f"py3-none-manylinux_2_{needed_glibc(arguments.extension, arguments.tool)}_{platform.machine()}"
    info = f"sqlite_replicated-{version()}.dist-info"
    files = {
        "replicated/__init__.py": text("python/replicated/__init__.py").encode(),
        "replicated/__main__.py": text("python/replicated/__main__.py").encode(),
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: sqlite-replicated\nVersion: {version()}\nSummary: {SUMMARY}\nLicense: MIT OR Apache-2.0\nRequires-Python: >=3.8\n"
            f"Description-Content-Type: text/markdown\n\n{text('python/README.md')}"
        ).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: scripts/package.py\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
        f"{info}/entry_points.txt": b"[console_scripts]\nreplicated = replicated.__main__:main\n",
    }
    files.update({f"{info}/{name}": licence(name).encode() for name in LICENCES})
    for name, path in (("replicated/replicated.so", arguments.extension), ("replicated/replicated-tool", arguments.tool)):
        with open(path, "rb") as file:
            files[name] = file.read()
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(content)))
    rows.writerow((f"{info}/RECORD", "", ""))
    files[f"{info}/RECORD"] = record.getvalue().encode()
    path = os.path.join(arguments.out, f"sqlite_replicated-{version()}-{tag}.whl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # Regular files; pip keeps the bit that says executable.
            entry.external_attr = (0o100755 if name.startswith("replicated/replicated") else 0o100644) << 16
            archive.writestr(entry, content)
    return path


def npm(arguments):
    """A package for this kind of machine."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("index.js", "README.md"):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text(f"npm/{name}"))
        for name in LICENCES:
            shutil.copyfile(os.path.join(ROOT, name), os.path.join(folder, name))
        shutil.copy(arguments.extension, os.path.join(folder, "replicated.so"))
        shutil.copy(arguments.tool, os.path.join(folder, "replicated-tool"))
        os.chmod(os.path.join(folder, "replicated-tool"), 0o755)
        package = {
            "name": "sqlite-replicated",
            "version": version(),
            "description": SUMMARY,
            "license": "MIT OR Apache-2.0",
            "main": "index.js",
            "bin": {"replicated": "replicated-tool"},
            "os": ["linux"],
            "cpu": [MACHINES[platform.machine()][0]],
            "files": ["index.js", "replicated.so", "replicated-tool", *LICENCES],
        }
        with open(os.path.join(folder, "package.json"), "w", encoding="utf-8") as file:
            json.dump(package, file, indent=2)
        packed = subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", os.path.abspath(arguments.out)], cwd=folder, check=True, capture_output=True, text=True
        )
    return os.path.join(arguments.out, packed.stdout.split()[-1])


def deb(arguments):
    """A Debian package: `.load replicated` in any program that uses the system's SQLite, and the command."""
    machine = MACHINES[platform.machine()][1]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        library = os.path.join(folder, "usr/lib", f"{platform.machine()}-linux-gnu")
        binaries, control, docs, units = (os.path.join(folder, name) for name in ("usr/bin", "DEBIAN", "usr/share/doc/sqlite-replicated", "usr/lib/systemd/system"))
        for directory in (library, binaries, control, docs, units):
            os.makedirs(directory)
        for name, path in (("replicated.so", arguments.extension), ("replicated-preload.so", arguments.preload)):
            shutil.copy(path, os.path.join(library, name))
            os.chmod(os.path.join(library, name), 0o644)
        shutil.copy(arguments.tool, os.path.join(binaries, "replicated"))
        os.chmod(os.path.join(binaries, "replicated"), 0o755)
        for name in os.listdir(os.path.join(ROOT, "deploy/systemd")):
            shutil.copyfile(os.path.join(ROOT, "deploy/systemd", name), os.path.join(units, name))
        for name in os.listdir(os.path.join(ROOT, "docs")):
            shutil.copyfile(os.path.join(ROOT, "docs", name), os.path.join(docs, name))
        with open(os.path.join(docs, "copyright"), "w", encoding="utf-8") as file:
            file.write(debian_copyright())
        with open(os.path.join(control, "control"), "w", encoding="utf-8") as file:
            file.write(
                f"Package: sqlite-replicated\nVersion: {version()}\nArchitecture: {machine}\nMaintainer: the founding engineers of replicated\n"
                f"Section: database\nPriority: optional\nDepends: libc6 (>= 2.{needed_glibc(arguments.extension, arguments.preload, arguments.tool)}), libgcc-s1\n"
                f"Recommends: libsqlite3-0, ca-certificates\nDescription: {SUMMARY}\n The SQLite extension `replicated`, and the command that restores.\n"
            )
        path = os.path.join(arguments.out, f"sqlite-replicated_{version()}_{machine}.deb")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", folder, path], check=True, stdout=subprocess.DEVNULL)
    return path


KINDS = {"wheel": (wheel, None), "npm": (npm, "npm"), "deb": (deb, "dpkg-deb")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[[], *KINDS])
    parser.add_argument("--extension", default=os.path.join(ROOT, "dist/replicated.so"))
    parser.add_argument("--preload", default=os.path.join(ROOT, "dist/replicated-preload.so"), help="the library for LD_PRELOAD, which goes into the Debian package")
    parser.add_argument("--tool", default=os.path.join(ROOT, "dist/replicated"))
    parser.add_argument("--out", default=os.path.join(ROOT, "dist/packages"))
    arguments = parser.parse_args()
    if platform.machine() not in MACHINES:
        sys.exit(f"no packages are made for {platform.machine()}")
    os.makedirs(arguments.out, exist_ok=True)
    # What is in a package can be read by all, whoever makes it.
    os.umask(0o022)
    for kind, (make, needed) in KINDS.items():
        if arguments.kinds and kind not in arguments.kinds:
            continue
        if needed and not shutil.which(needed):
            if arguments.kinds:
                sys.exit(f"{kind}: {needed} is not there")
            print(f"{kind}: not made, {needed} is not there", file=sys.stderr)
            continue
        print(make(arguments))


main()
