"""The requests of a writable mount, answered raw on the wire.

What each request means for names, attributes and open files; that it is done once is `OnceResponder`'s business. What
concerns objects of the bucket alone goes to `Responder`.
"""

from __future__ import annotations

import errno
import logging
import os
import time

from mountkit.serve import messages, processes_of_callers, session
from mountkit.serve import output_messages as out
from mountkit.serve.input_fs import InputFileSystem
from mountkit.serve.once import RESEND, OnceResponder
from mountkit.serve.output_attributes import OURS
from mountkit.serve.output_fs import OutputFileSystem
from mountkit.serve.output_names import Place
from mountkit.serve.shared import AnotherFileIsOpen, BackingTableFull, SharedMemory
from mountkit.serve.values import ROOT, DirectoryEntry, FileSystemError
from mountkit.serve.wire import RawHandler, Wire
from mountkit.staging.tree import NODE_BIT, Node

log = logging.getLogger(__name__)
_ACCESS = os.O_ACCMODE
_BLOCK = 4096


class OutputResponder(OnceResponder):
    """Raw answers of the one server of a writable mount."""

    def __init__(
        self,
        wire: Wire,
        files: OutputFileSystem,
        bucket: InputFileSystem,
        shared: SharedMemory,
        slot: int,
        *,
        passthrough: bool,
    ) -> None:
        super().__init__(wire, bucket, shared, slot, journal=files.overlay.journal, asking=files.names.asking)
        self._out, self._passthrough = files, passthrough

    def handlers(self) -> dict[int, RawHandler]:
        answered = {
            out.SETATTR: self._setattr,
            out.READLINK: self._readlink,
            out.SYMLINK: self._symlink,
            out.MKNOD: self._mknod,
            out.MKDIR: self._mkdir,
            out.UNLINK: self._unlink,
            out.RMDIR: self._rmdir,
            out.RENAME: self._rename,
            out.RENAME2: self._rename2,
            out.CREATE: self._create,
            out.WRITE: self._write,
            out.FLUSH: self._flush,
            out.FSYNC: self._fsync,
            out.FSYNCDIR: self._fsyncdir,
            out.OPENDIR: self._opendir,
            out.RELEASEDIR: self._releasedir,
            out.STATFS: self._statfs,
            out.GETXATTR: self._getxattr,
            out.LISTXATTR: self._listxattr,
            out.SETXATTR: self._setxattr,
            out.REMOVEXATTR: self._removexattr,
        }
        refused = {
            out.LINK: errno.EPERM,
            out.FALLOCATE: errno.EOPNOTSUPP,
            out.TMPFILE: errno.EOPNOTSUPP,
            out.LSEEK: errno.ENOSYS,
            out.COPY_FILE_RANGE: errno.ENOSYS,
            out.ACCESS: errno.ENOSYS,
            out.STATX: errno.ENOSYS,
        }
        mine = {opcode: self._guarded(operation) for opcode, operation in answered.items()}
        refusals = {opcode: self._refusal(number) for opcode, number in refused.items()}
        handlers = super().handlers() | mine | refusals
        # Names are always told with their attributes here: both come from the overlay.
        del handlers[messages.READDIR]
        return handlers

    # ---- names ---------------------------------------------------------------------------------------------
    def _lookup(self, unique: int, parent: int, pid: int, length: int) -> None:
        name = messages.lookup_name(self._wire.buffer, length)
        if self._out.names.is_hidden(parent, name):
            super()._lookup(unique, parent, pid, length)
            return
        self._count.lookups += 1

        def answer(place: Place) -> None:
            if place.exists:
                self._wire.send(out.reply(unique, out.entry_body(*self._out.names.shown_at(place))))
            else:
                self._wire.send(messages.negative_entry(unique, place.timeout_s))

        self._ask(unique, pid, lambda: self._out.names.lookup(parent, name), answer)

    def _getattr(self, unique: int, inode: int, pid: int, _length: int) -> None:
        self._ask(
            unique,
            pid,
            lambda: self._out.names.attributes(inode),
            lambda found: self._wire.send(messages.attributes(unique, *found)),
        )

    def _mknod(self, unique: int, parent: int, pid: int, length: int) -> None:
        mode, name = out.mode_and_name(self._wire.buffer, length, node=True)
        owner = out.caller(self._wire.buffer)
        self._mutate(unique, pid, lambda: self._entry(self._out.entries.make_node(parent, name, mode, owner)))

    def _mkdir(self, unique: int, parent: int, pid: int, length: int) -> None:
        mode, name = out.mode_and_name(self._wire.buffer, length, node=False)
        owner = out.caller(self._wire.buffer)
        self._mutate(unique, pid, lambda: self._entry(self._out.entries.make_directory(parent, name, mode, owner)))

    def _symlink(self, unique: int, parent: int, pid: int, length: int) -> None:
        name, target = out.two_names(self._wire.buffer, length)
        owner = out.caller(self._wire.buffer)
        self._mutate(unique, pid, lambda: self._entry(self._out.entries.make_symlink(parent, name, target, owner)))

    def _readlink(self, unique: int, inode: int, _pid: int, _length: int) -> None:
        node = self._out.names.node(inode)
        if node is None or node.target is None:
            raise FileSystemError(errno.EINVAL)
        self._wire.send(out.reply(unique, node.target))

    def _unlink(self, unique: int, parent: int, pid: int, length: int) -> None:
        name = out.name(self._wire.buffer, length)
        self._mutate(unique, pid, lambda: self._out.entries.unlink(parent, name))

    def _rmdir(self, unique: int, parent: int, pid: int, length: int) -> None:
        name = out.name(self._wire.buffer, length)
        self._mutate(unique, pid, lambda: self._out.entries.remove_directory(parent, name))

    def _rename(self, unique: int, parent: int, pid: int, length: int) -> None:
        self._rename_any(unique, parent, pid, length, second=False)

    def _rename2(self, unique: int, parent: int, pid: int, length: int) -> None:
        self._rename_any(unique, parent, pid, length, second=True)

    def _rename_any(self, unique: int, parent: int, pid: int, length: int, *, second: bool) -> None:
        new_parent, flags, name, new_name = out.rename_request(self._wire.buffer, length, second=second)
        self._mutate(unique, pid, lambda: self._out.renames.rename(parent, name, new_parent, new_name, flags))

    def _entry(self, node: Node) -> bytes:
        shown, timeout = self._out.names.shown(node)
        return out.entry_body(shown, self._out.overlay.show.ttl_s, timeout)

    # ---- attributes ----------------------------------------------------------------------------------------
    def _setattr(self, unique: int, inode: int, pid: int, _length: int) -> None:
        changes = out.changes(self._wire.buffer, time.time_ns())
        caller_uid, _ = out.caller(self._wire.buffer)

        def change() -> bytes:
            self._out.attributes.set_attributes(inode, changes, caller_uid)
            shown, timeout = self._out.names.attributes(inode)
            return messages.attributes(unique, shown, timeout)[messages.OUT_HEADER.size :]

        self._mutate(unique, pid, change)

    def _getxattr(self, unique: int, inode: int, pid: int, length: int) -> None:
        room, name = out.xattr_request(self._wire.buffer, length)
        if not name.startswith(b"user."):
            raise FileSystemError(errno.ENODATA)

        def answer(found: dict[bytes, bytes]) -> None:
            if name not in found:
                raise FileSystemError(errno.ENODATA)
            self._send_xattr(unique, room, found[name])

        self._ask(unique, pid, lambda: self._out.attributes.extended_attributes(inode), answer)

    def _listxattr(self, unique: int, inode: int, pid: int, _length: int) -> None:
        room = out.handle_of(self._wire.buffer) & 0xFFFFFFFF

        def answer(found: dict[bytes, bytes]) -> None:
            # Not those that say what we know of the file: who copies a file with its attributes could not set them.
            names = [name for name in found if not name.startswith(OURS)]
            self._send_xattr(unique, room, b"".join(name + b"\0" for name in names))

        self._ask(unique, pid, lambda: self._out.attributes.extended_attributes(inode), answer)

    def _send_xattr(self, unique: int, room: int, value: bytes) -> None:
        if room == 0:
            self._wire.send(out.reply(unique, out.xattr_size_body(len(value))))
        elif len(value) > room:
            raise FileSystemError(errno.ERANGE)
        else:
            self._wire.send(out.reply(unique, value))

    def _setxattr(self, unique: int, inode: int, pid: int, length: int) -> None:
        name, value, flags = out.set_xattr_request(self._wire.buffer, length)
        self._mutate(unique, pid, lambda: self._out.attributes.set_extended_attribute(inode, name, value, flags))

    def _removexattr(self, unique: int, inode: int, pid: int, length: int) -> None:
        name = out.name(self._wire.buffer, length)
        self._mutate(unique, pid, lambda: self._out.attributes.set_extended_attribute(inode, name, None))

    def _statfs(self, unique: int, _inode: int, _pid: int, _length: int) -> None:
        free = self._out.overlay.free_bytes() // _BLOCK
        used = self._out.overlay.used_bytes // _BLOCK
        self._wire.send(out.reply(unique, out.statfs_body(blocks=free + used, free=free, block_bytes=_BLOCK)))

    # ---- open files ----------------------------------------------------------------------------------------
    def _create(self, unique: int, parent: int, pid: int, length: int) -> None:
        flags, mode, name = out.create_request(self._wire.buffer, length)
        owner = out.caller(self._wire.buffer)
        self._count.opens += 1

        def create() -> bytes:
            node, handle = self._out.entries.create(parent, name, mode, flags, owner)
            return self._entry(node) + self._opened(node, handle, flags)

        self._mutate(unique, pid, create)

    def _open(self, unique: int, inode: int, pid: int, length: int) -> None:
        flags = out.open_flags(self._wire.buffer)
        if not inode & NODE_BIT and not flags & (_ACCESS | os.O_TRUNC):
            super()._open(unique, inode, pid, length)
            return
        self._count.opens += 1

        def opening() -> bytes:
            node, handle = self._out.files.open(inode, flags)
            return self._opened(node, handle, flags)

        self._mutate(unique, pid, opening)

    def _opened(self, node: Node, handle: int, flags: int) -> bytes:
        """How the kernel shall treat the handle: in passthrough, it reads and writes the staging file by itself."""
        how = 0 if flags & _ACCESS else messages.FOPEN_NOFLUSH
        if not self._passthrough:
            return out.opened_body(handle, how | messages.FOPEN_KEEP_CACHE)
        assert node.file is not None
        fd = self._out.overlay.staging.descriptor(node.file)
        try:
            backing_id = self._shared.acquire_backing(
                node.inode, node.file, lambda: session.open_backing(self._wire.kernel, fd)
            )
        except AnotherFileIsOpen:
            raise FileSystemError(errno.ESTALE) from None  # the kernel looks the name up once more
        except BackingTableFull:
            raise FileSystemError(errno.ENFILE) from None
        self._journal.when_undone(lambda: self._shared.release_backing(node.inode, self._close_backing))
        self._count.passthrough_opens += 1
        return out.opened_body(handle, how | messages.FOPEN_PASSTHROUGH, backing_id)

    def _read(self, unique: int, inode: int, pid: int, length: int) -> None:
        if not inode & NODE_BIT:
            super()._read(unique, inode, pid, length)
            return
        offset, size = messages.read_request(self._wire.buffer)
        data = os.pread(self._descriptor(inode), size, offset)
        self._count.reads += 1
        self._count.read_bytes += len(data)
        self._wire.send(messages.data_header(unique, len(data)), data)

    def _write(self, unique: int, inode: int, _pid: int, _length: int) -> None:
        _, offset, size, begin = out.write_request(self._wire.buffer)
        written = self._out.files.write(inode, offset, memoryview(self._wire.buffer)[begin : begin + size])
        self._wire.send(out.reply(unique, out.written_body(written)))

    def _descriptor(self, inode: int) -> int:
        return self._out.files.descriptor(inode)

    def _flush(self, unique: int, inode: int, pid: int, _length: int) -> None:
        if not inode & NODE_BIT:
            self._wire.send(messages.failed(unique, 0))
            return
        handle = out.handle_of(self._wire.buffer)

        async def durable(seq: int) -> None:
            self._wire.send(messages.failed(unique, await self._out.commits.commit([seq])))

        with self._journal.transaction():
            seq = self._out.files.flush(handle, dying=lambda: processes_of_callers.is_being_killed(pid))
            failure = self._out.commits.failure()
        if seq is not None and self._out.overlay.settings.durable_close:
            self._start(unique, pid, lambda: durable(seq))
        else:
            self._wire.send(messages.failed(unique, failure))

    def _fsync(self, unique: int, inode: int, pid: int, _length: int) -> None:
        self._commit(unique, inode, pid, out.handle_of(self._wire.buffer))

    def _fsyncdir(self, unique: int, inode: int, pid: int, _length: int) -> None:
        self._commit(unique, inode, pid, None)

    def _commit(self, unique: int, inode: int, pid: int, handle: int | None) -> None:
        with self._journal.transaction():
            seqs = self._out.commits.to_commit(inode, handle)

        async def wait() -> None:
            self._wire.send(messages.failed(unique, await self._out.commits.commit(seqs)))

        if seqs:
            self._start(unique, pid, wait)
        else:
            self._wire.send(messages.failed(unique, self._out.commits.failure()))

    def _release(self, unique: int, inode: int, pid: int, length: int) -> None:
        if not inode & NODE_BIT:
            super()._release(unique, inode, pid, length)
            return
        handle = out.handle_of(self._wire.buffer)
        if self._out.files.release(handle) and self._passthrough:
            self._shared.release_backing(inode, self._close_backing)
        self._wire.send(messages.failed(unique, 0))

    # ---- directories ---------------------------------------------------------------------------------------
    def _opendir(self, unique: int, inode: int, _pid: int, _length: int) -> None:
        handle = unique & ~RESEND
        if inode == ROOT or inode & NODE_BIT:
            self._out.listing.open_directory(handle)
        self._wire.send(out.reply(unique, out.opened_body(handle, 0)))

    def _releasedir(self, unique: int, _inode: int, _pid: int, _length: int) -> None:
        self._out.listing.close_directory(out.handle_of(self._wire.buffer))
        self._wire.send(messages.failed(unique, 0))

    def _readdirplus(self, unique: int, inode: int, pid: int, length: int) -> None:
        if inode != ROOT and not inode & NODE_BIT:
            super()._readdirplus(unique, inode, pid, length)
            return
        cookie, size = messages.read_request(self._wire.buffer)
        handle = out.handle_of(self._wire.buffer)

        def page() -> list[DirectoryEntry]:
            directory = self._out.names.node(inode)
            assert directory is not None
            return self._out.listing.entries(directory, handle, cookie)

        def answer(entries: list[DirectoryEntry]) -> None:
            self._send_records(unique, size, (messages.directory_entry(*each) for each in entries))

        self._ask(unique, pid, page, answer)
