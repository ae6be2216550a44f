#!/usr/bin/python3
"""Replicates a database from Django: migrations, a few commits, a wait until the bucket has them, the status.

usage: app.py REPLICA_URL [DATABASE]

What there is to see is in settings.py. The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.
"""

import os
import sys

import django
from django.core.management import call_command


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    os.environ["NOTES_REPLICA"] = sys.argv[1]
    if sys.argv[2:]:
        os.environ["NOTES_DATABASE"] = os.path.abspath(sys.argv[2])
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    django.setup()

    from django.db import connection
    from notes.models import Note

    call_command("migrate", verbosity=0)
    for text in ("one from Django", "two from Django"):
        Note.objects.create(text=text)

    with connection.cursor() as cursor:
        (txid,) = cursor.execute("PRAGMA replicated_sync").fetchone()
        print(f"everything is in the bucket, up to TXID {txid}")
        (status,) = cursor.execute("PRAGMA replicated_status").fetchone()
        print(status)
    connection.close()


if __name__ == "__main__":
    main()
