"""The writable file system, put together: what programs do to names, attributes and open files, each in its module."""

from __future__ import annotations

from mountkit.catalog.view import CatalogView
from mountkit.config import OutputSettings
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.mover_link import MoverLink
from mountkit.serve.output_attributes import AttributeChanges
from mountkit.serve.output_commits import Commits
from mountkit.serve.output_entries import Entries
from mountkit.serve.output_files import OpenFiles
from mountkit.serve.output_renames import Renames
from mountkit.serve.overlay import Overlay
from mountkit.serve.staged_objects import StagedObjects
from mountkit.serve.values import Presentation
from mountkit.staging.files import StagingFiles
from mountkit.staging.journal import Journal


class OutputFileSystem:
    """One writable mount. All methods of its parts belong to one trio thread."""

    def __init__(
        self,
        journal: Journal,
        staging: StagingFiles,
        bucket: InputFileSystem,
        view: CatalogView,
        mover: MoverLink,
        show: Presentation,
        settings: OutputSettings,
    ) -> None:
        self.overlay = Overlay(journal, staging, bucket, view, mover, show, settings)
        self.names, self.listing = self.overlay.names, self.overlay.listing
        objects = StagedObjects(self.overlay, bucket.names)
        self.files = OpenFiles(self.overlay, objects)
        self.entries = Entries(self.overlay, self.files)
        self.renames = Renames(self.overlay, self.entries)
        self.attributes = AttributeChanges(self.overlay, objects, bucket.names)
        self.commits = Commits(self.overlay, mover)
