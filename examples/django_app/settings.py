"""Django's settings for a database that is replicated. What is particular to it is marked."""

import os
import pathlib
import sqlite3
from urllib.parse import quote

BASE_DIR = pathlib.Path(__file__).resolve().parent
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only for the example")
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "notes"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

# Once a process, before Django opens the database: loads the extension. A variable that begins with REPLICATED_ and is no option of ours refuses the open, hence pop.
scratch = sqlite3.connect(":memory:")
scratch.enable_load_extension(True)
scratch.load_extension(os.environ.pop("REPLICATED_EXTENSION", str(BASE_DIR.parent.parent / "dist" / "replicated.so")))
scratch.close()

DATABASE = os.environ.get("NOTES_DATABASE", str(BASE_DIR / "app.db"))
REPLICA = os.environ["NOTES_REPLICA"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        # A URI: Django opens with URIs on.
        "NAME": f"file:{quote(DATABASE)}?vfs=replicated&replica={quote(REPLICA, safe=':/')}",
        "OPTIONS": {"init_command": "PRAGMA journal_mode=wal; PRAGMA synchronous=normal", "transaction_mode": "IMMEDIATE"},
        # Tests get a database in memory, which is not replicated.
        "TEST": {"NAME": None},
    }
}
