"""What the application keeps."""

from django.db import models


class Note(models.Model):
    """A note."""

    text = models.TextField()

    class Meta:
        db_table = "notes"
