"""The bytes of an .ort file, made the same every time.

The runtime writes the file's head, a table of the operators' type names (KernelTypeStrResolver in its ort.fbs), in the
order of a hash table whose seed changes from run to run. A flatbuffer is written back to front, so that table lies
before the model, and nothing behind refers to it: it can be written anew, in sorted order, in front of the same model.
"""

import mmap
import shutil
import struct
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import onnxruntime.tools.ort_format_model  # noqa: F401  makes the next one importable
from ort_flatbuffers_py.fbs import (  # type: ignore[import-not-found]
    ArgTypeAndIndex,
    InferenceSession,
    KernelTypeStrArgsEntry,
    KernelTypeStrResolver,
    OpIdKernelTypeStrArgsEntry,
)

_IDENTIFIER = b"ORTM"
_ALIGNMENT = 64  # at least that of any tensor in the file
_MODEL_SLOT = 6  # of the field `model` in a vtable of InferenceSession


def sort_head(path: Path) -> None:
    """Rewrite the .ort file at path with its head in sorted order."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        session = InferenceSession.InferenceSession.GetRootAsInferenceSession(content, 0)
        model = session.Model()._tab.Pos
        start = model - struct.unpack_from("<i", content, model)[0]  # the model's vtable, just before it
        head = _head(session, start, model, len(content))
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as target:
            target.write(head)
            file.seek(start)
            shutil.copyfileobj(file, target, 1 << 24)
        del session
    partial.replace(path)


def _head(session: Any, start: int, model: int, size: int) -> bytes:
    """Up to the model, whose place in the file of `size` bytes it knows.

    A flatbuffer is aligned from its end, which is a multiple of every alignment in it: so is the new one. Where the old
    model began depends on the order of the old head.
    """
    builder = flatbuffers.Builder(4096)
    version = builder.CreateString(session.OrtVersion())
    resolver = _resolver(builder, session.KernelTypeStrResolver())
    InferenceSession.InferenceSessionStart(builder)
    InferenceSession.InferenceSessionAddOrtVersion(builder, version)
    InferenceSession.InferenceSessionAddModel(builder, resolver)  # a place for the offset below
    InferenceSession.InferenceSessionAddKernelTypeStrResolver(builder, resolver)
    builder.Finish(InferenceSession.InferenceSessionEnd(builder), file_identifier=_IDENTIFIER)
    head = bytearray(builder.Output())
    head += bytes(-(len(head) + size - start) % _ALIGNMENT)
    root = struct.unpack_from("<I", head, 0)[0]
    vtable = root - struct.unpack_from("<i", head, root)[0]
    field = root + struct.unpack_from("<H", head, vtable + _MODEL_SLOT)[0]
    struct.pack_into("<I", head, field, len(head) + model - start - field)
    return bytes(head)


def _resolver(builder: Any, resolver: Any) -> int:
    entries = [resolver.OpKernelTypeStrArgs(index) for index in range(resolver.OpKernelTypeStrArgsLength())]
    built = []
    for entry in sorted(entries, key=lambda entry: entry.OpId()):
        names = [entry.KernelTypeStrArgs(index) for index in range(entry.KernelTypeStrArgsLength())]
        parts = [_type_name(builder, name) for name in sorted(names, key=lambda name: name.KernelTypeStr())]
        listed = _vector(builder, parts)
        operator = builder.CreateString(entry.OpId())
        OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryStart(builder)
        OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryAddOpId(builder, operator)
        OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryAddKernelTypeStrArgs(builder, listed)
        built.append(OpIdKernelTypeStrArgsEntry.OpIdKernelTypeStrArgsEntryEnd(builder))
    listed = _vector(builder, built)
    KernelTypeStrResolver.KernelTypeStrResolverStart(builder)
    KernelTypeStrResolver.KernelTypeStrResolverAddOpKernelTypeStrArgs(builder, listed)
    return int(KernelTypeStrResolver.KernelTypeStrResolverEnd(builder))


def _type_name(builder: Any, entry: Any) -> int:
    arguments = []
    for argument in (entry.Args(index) for index in range(entry.ArgsLength())):  # these are in the runtime's order
        ArgTypeAndIndex.ArgTypeAndIndexStart(builder)
        ArgTypeAndIndex.ArgTypeAndIndexAddArgType(builder, argument.ArgType())
        ArgTypeAndIndex.ArgTypeAndIndexAddIndex(builder, argument.Index())
        arguments.append(ArgTypeAndIndex.ArgTypeAndIndexEnd(builder))
    listed, name = _vector(builder, arguments), builder.CreateString(entry.KernelTypeStr())
    KernelTypeStrArgsEntry.KernelTypeStrArgsEntryStart(builder)
    KernelTypeStrArgsEntry.KernelTypeStrArgsEntryAddKernelTypeStr(builder, name)
    KernelTypeStrArgsEntry.KernelTypeStrArgsEntryAddArgs(builder, listed)
    return int(KernelTypeStrArgsEntry.KernelTypeStrArgsEntryEnd(builder))


def _vector(builder: Any, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
