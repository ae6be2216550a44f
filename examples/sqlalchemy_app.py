#!/usr/bin/python3
"""Replicates a database from SQLAlchemy: a few commits, a wait until the bucket has them, the status.

usage: sqlalchemy_app.py REPLICA_URL [DATABASE]

The extension is dist/replicated.so of this repository (`make build`), or REPLICATED_EXTENSION.
"""

import os
import pathlib
import sqlite3
import sys
from urllib.parse import quote

from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

HERE = pathlib.Path(__file__).resolve().parent
# A variable that begins with REPLICATED_ and is no option of ours refuses the open: hence pop, not get.
EXTENSION = os.environ.pop("REPLICATED_EXTENSION", str(HERE.parent / "dist" / "replicated.so"))


def engine_for(path, replica):
    """An engine whose connections are replicated; the extension is loaded by a connection of its own."""
    scratch = sqlite3.connect(":memory:")
    scratch.enable_load_extension(True)
    scratch.load_extension(EXTENSION)
    scratch.close()
    # The query is decoded by SQLAlchemy and once more by SQLite, the path by SQLite only.
    url = f"sqlite:///file:{quote(os.path.abspath(path))}?vfs=replicated&replica={quote(quote(replica, safe=':/'))}&uri=true"
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def in_wal_mode(connection, _record):
        connection.execute("PRAGMA journal_mode=wal")

    return engine


class Base(DeclarativeBase):
    """The tables of this application."""


class Note(Base):
    """A note."""

    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    engine = engine_for((sys.argv[2:] or ["app.db"])[0], sys.argv[1])
    Base.metadata.create_all(engine)
    for words in ("one from SQLAlchemy", "two from SQLAlchemy"):
        with Session(engine) as session, session.begin():
            session.add(Note(text=words))

    with engine.connect() as db:
        print("everything is in the bucket, up to TXID", db.execute(text("PRAGMA replicated_sync")).scalar_one())
        print(db.execute(text("PRAGMA replicated_status")).scalar_one())
    # The connections of the pool are closed, and the last one waits for the bucket.
    engine.dispose()


if __name__ == "__main__":
    main()
