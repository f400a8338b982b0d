"""Pickles: arrays, strings and numbers come back; whatever else a pickle asks for is named and not done."""

import contextlib
import io
import os
import pickle
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.data import pickles
from fewshot.errors import FewshotError

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)
SOUND: dict[str, Any] = {
    "floats": FLOATS,
    "in Fortran's order": np.asfortranarray(FLOATS),
    "of the other byte order": FLOATS.astype(">f4"),
    "a slice": FLOATS[:, 1:],
    "long": np.random.RandomState(0).randn(500, 7),
    "whole numbers": np.array([1, 2], np.int64),
    "truth values": np.array([True, False]),
    "text": np.array(["a", "né"]),
    "bytes": np.array([b"a", b"\xff"]),
    "objects": np.array(["n01-n01-n01_1.jpg", "ümlaut"], dtype=object),
    "of nothing": np.zeros((0, 3), np.float32),
    "of no dimension": np.array(3.0, np.float32),
}


def string(text: str) -> bytes:
    """As Python 2 wrote its strings."""
    return b"U" + bytes([len(text)]) + text.encode("latin1")


def python2_array(spec: str, shape: bytes, data: bytes, state: bytes = b"") -> bytes:
    """The opcodes that Python 2 and NumPy 1 wrote for an array; `state`: of its type, in place of the usual one."""
    state = state or b"(K\x03" + string("<" if spec != "O8" else "|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string("b") + b"\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\n" + string(spec) + b"K\x00K\x01\x87R" + state + b"b\x89" + data + b"tb"
    )


def loaded(data: bytes) -> Any:
    return pickles.load(io.BytesIO(data))


def refused(data: bytes, match: str) -> None:
    with pytest.raises(FewshotError, match=match) as caught:
        loaded(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", SOUND)
def test_an_array_comes_back_as_it_was(name: str, protocol: int):
    data = pickle.dumps({"x": [SOUND[name], (SOUND[name],)]}, protocol)
    found, meant = loaded(data)["x"], pickle.loads(data)["x"][0]
    assert found[1][0] is found[0] and found[0].dtype == meant.dtype and found[0].shape == meant.shape
    assert np.array_equal(np.asarray(found[0]), SOUND[name])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_strings_and_numbers_come_back(protocol: int):
    content = {"a": [1, 2.5, None, True, 10**30, b"\x00\xff", b"", "né", ""], "b": ({"c": "d"}, ()), 3: []}
    assert loaded(pickle.dumps(content, protocol)) == content
    numbers = [np.float32(1.5), np.int64(-3), np.bytes_(b"n01"), np.str_("n01")]
    found = loaded(pickle.dumps(numbers, protocol))
    assert found == numbers and [type(each) for each in found] == [type(each) for each in numbers]


def test_what_python_2_wrote_comes_back():
    rows = FLOATS.tobytes()
    floats = python2_array("f4", b"K\x02K\x03\x86", b"T" + struct.pack("<i", len(rows)) + rows)
    keys = python2_array("O8", b"K\x02\x85", b"](" + string("n01") + string("caf\xe9") + b"e")
    found = loaded(b"\x80\x02}(" + string("embeddings") + floats + string("keys") + keys + b"u.")
    assert np.array_equal(found["embeddings"], FLOATS) and found["embeddings"].dtype == np.float32
    assert list(found["keys"]) == ["n01", "café"]


class Asks:
    """Pickles to a call."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int):
    victim, made = tmp_path / "victim.npy", tmp_path / "made"
    np.save(victim, FLOATS)
    before = victim.read_bytes()
    code = f"open({str(made)!r}, 'w')"
    attacks = {
        "system": Asks(os.system, f"touch {made}"),
        "eval": Asks(eval, code),
        "exec": Asks(exec, code),
        "open": Asks(open, str(made), "w"),
        "getattr": Asks(getattr, np.ndarray, "tofile"),
        "load": Asks(np.load, str(victim)),
        "fromfile": Asks(np.fromfile, str(victim)),
        "memmap": Asks(np.memmap, str(made), "uint8", "w+", 0, (8,)),
        "DataSource": Asks(np.lib.npyio.DataSource, str(tmp_path)),
        "save": Asks(np.save, str(made), FLOATS),
        "loads": Asks(pickle.loads, pickle.dumps(Asks(eval, code))),
        "PosixPath": Path("/etc/passwd"),
        "dict": {"keys": ["a"], "embeddings": FLOATS, "labels": Asks(eval, code)},
        "objects": np.array([Asks(eval, code)], dtype=object),
    }
    for name, attack in attacks.items():
        data = pickle.dumps(attack, protocol)
        refused(data, "it asks for '")
        assert not made.exists() and victim.read_bytes() == before, name


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "__builtin__ eval",
        "posix system",
        "nt system",
        "subprocess Popen",
        "numpy load",
        "numpy memmap",
        "numpy DataSource",
        "numpy core.multiarray.fromfile",
        "numpy ndarray.tofile",
        "numpy.core.multiarray fromfile",
        "numpy._core.multiarray ndarray",
        "numpy._core.numeric fromfile",
        "numpy.testing._private.utils runstring",
        "_codecs lookup",
        "_codecs decode",
        "codecs encode",
        "copy_reg _reconstructor",
        "functools partial",
        "fewshot.data.pickles ADMITTED",
    ],
)
def test_a_name_that_is_not_admitted_is_named(name: str):
    module, attribute = name.split()
    wanted = f"it asks for '{module}.{attribute}'"
    refused(f"c{module}\n{attribute}\n.".encode(), wanted)
    refused(b"\x80\x04" + b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in name.split()) + b"\x93.", wanted)
    refused(f"(i{module}\n{attribute}\n.".encode(), wanted)


DTYPE = b"cnumpy\ndtype\n"
HUGE = b"\x8a\x08" + struct.pack("<q", 1 << 60)
ODD = {
    "an encoding": b"c_codecs\nencode\n" + string("x") + string("rot13") + b"\x86R.",
    "the default encoding": b"c_codecs\nencode\n" + string("x") + b"\x85R.",
    "many bytes": b"cbuiltins\nbytes\n" + HUGE + b"\x85R.",
    "a called class": b"cnumpy\nndarray\n(" + HUGE + b"\x85tR.",
    "a new object": b"cnumpy\nndarray\n" + HUGE + b"\x85\x85\x81.",
    "fields": DTYPE + b"](" + string("a") + string("O") + b"\x86e\x85R.",
    "text of fields": DTYPE + string("f4,O") + b"\x85R.",
    "objects with a size": DTYPE + string("V8") + b"\x85R.",
    "times": DTYPE + string("M8[s]") + b"\x85R.",
    "a type in a type": DTYPE + DTYPE + string("f4") + b"\x85R\x85R.",
    "a subarray": python2_array(
        "f4", b"K\x01\x85", string("abcd"), b"(K\x03" + string("<") + b"K\x01NNK\x04K\x04K\x00tb"
    ),
    "a big array at first": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + HUGE + b"\x85U\x01b\x87R.",
    "a shape beyond the data": python2_array("f4", HUGE + b"\x85", string("abcd")) + b".",
    "a shape below the data": python2_array("f4", b"K\x01\x85", string("abcdefgh")) + b".",
    "a shape below nothing": python2_array("f4", b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", string("abcd")) + b".",
    "objects from bytes": python2_array("O8", b"K\x01\x85", string("abcdefgh")) + b".",
    "numbers from objects": python2_array("f4", b"K\x01\x85", b"](K\x01e") + b".",
    "objects too few": python2_array("O8", b"K\x03\x85", b"](K\x01e") + b".",
    "an object from bytes": b"cnumpy.core.multiarray\nscalar\n"
    + DTYPE
    + b"U\x01O\x85R"
    + string("abcdefgh")
    + b"\x86R.",
    "a place that is far away": b"\x80\x02]r\xff\xff\xff\xff(j\xff\xff\xff\x7fe.",
    "a length beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.",
    "a byte array beyond the file": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"x.",
    "a buffer": b"\x80\x05\x97.",
    "a persistent thing": b"\x80\x02K\x01Q.",
    "an extension": b"\x80\x02\x82\x01.",
    "a key that cannot be one": b"\x80\x02}]K\x01s.",
    "an attribute of a stand-in": b"c_codecs\nencode\n" + b"N}" + string("__doc__") + b"K\x01s\x86b.",
    "nothing": b"",
    "no opcode": b"\xfe\xfe\xfe",
    "a web page": b"<!DOCTYPE html><html>",
    "a later protocol": b"\x80\x63K\x01.",
}


@pytest.mark.parametrize("name", ODD)
def test_what_numpy_does_not_write_is_refused(name: str):
    refused(ODD[name], "pickle: no whole pickle of arrays, strings and numbers alone")


def test_a_stand_in_stays_as_it_is():
    loaded(b"c_codecs\nencode\n}" + string("__defaults__") + b"K\x01sb.")
    assert pickles.STAND_INS.encode.__func__.__defaults__ is None


def test_a_pickle_that_is_cut_anywhere_is_refused():
    whole = pickle.dumps({"keys": ["a", "b"], "embeddings": FLOATS}, 2)
    for length in range(len(whole)):
        refused(whole[:length], "no whole pickle")


def test_a_pickle_with_any_byte_changed_is_read_or_refused():
    whole = pickle.dumps({"keys": np.array(["a", "b"], object), "embeddings": FLOATS}, 2)
    for at in range(len(whole)):
        for value in (0, 0x2E, 0x52, 0x62, 0xFF, whole[at] ^ 1):
            with contextlib.suppress(FewshotError):
                loaded(whole[:at] + bytes([value]) + whole[at + 1 :])


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x8d", b"\x96", b"\x95"])
def test_a_length_beyond_the_file_takes_no_memory(tmp_path: Path, opcode: bytes):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x05" + opcode + struct.pack("<Q", 1 << 33) + b"x.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (tmp_path / "a.pkl").open("rb") as file, pytest.raises(FewshotError):
        pickles.load(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # of 1 KiB; what was claimed is 8 GiB


def test_depth_does_not_matter():
    found = loaded(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    assert isinstance(found, list)
    refused(pickle.dumps(Asks(eval, "1"), 2)[:-1] + b"\x85" * 100_000 + b".", "eval")


def test_the_file_is_named(tmp_path: Path):
    (tmp_path / "a.pkl").write_bytes(b"cos\nsystem\n.")
    with (
        (tmp_path / "a.pkl").open("rb") as file,
        pytest.raises(FewshotError, match=r"a.pkl: .*it asks for 'os.system'"),
    ):
        pickles.load(file)
