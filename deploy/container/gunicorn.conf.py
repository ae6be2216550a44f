"""How the container's server runs."""

bind = "0.0.0.0:8000"
workers = 2
# Starting may take as long as a restore of the database and a wait for the container before this one.
timeout = 600
# Requests that are under way get so long after SIGTERM; then the database is closed, which waits for the bucket for up to 5 s (close_timeout). The
# container's own patience (stop_grace_period) has to be longer than both.
graceful_timeout = 10


def post_worker_init(_worker):
    """The database is restored and opened before the first request: by one worker, while the others wait."""
    import flask_app

    flask_app.keep_open()
