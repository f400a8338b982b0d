"""Pickles: arrays, strings and numbers come back; whatever else a pickle asks for is named and not run."""

import contextlib
import io
import pickle
import resource
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.data.sources import pickles

from ..made_sources import Attack

PROTOCOLS = (0, 2, 4, 5)
FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)
SOUND: dict[str, Any] = {
    "floats": FLOATS,
    "in Fortran's order": np.asfortranarray(FLOATS),
    "of the other byte order": FLOATS.astype(">f4"),
    "a slice": FLOATS[:, 1:],
    "whole numbers": np.array([1, 2], np.int64),
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
    with pytest.raises(ValueError, match=match) as caught:
        loaded(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", SOUND)
def test_an_array_comes_back_as_it_was(name: str, protocol: int):
    data = pickle.dumps({"x": [SOUND[name], (SOUND[name],)]}, protocol)
    found, meant = loaded(data)["x"], pickle.loads(data)["x"][0]
    assert found[1][0] is found[0] and found[0].dtype == meant.dtype and found[0].shape == meant.shape
    assert np.array_equal(np.asarray(found[0]), SOUND[name])


@pytest.mark.parametrize("protocol", PROTOCOLS)
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


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int):
    made = tmp_path / "made"
    attack = Attack(made)
    attacks = [attack, {"keys": ["a"], "labels": attack}, np.array([attack], dtype=object), Path("/etc/passwd")]
    attacks += [np.load, np.memmap, np.lib.npyio.DataSource, getattr, eval]
    for content in attacks:
        refused(pickle.dumps(content, protocol), "it asks for '")
        assert not made.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval", "__builtin__ eval", "posix system", "nt system", "subprocess Popen", "numpy load",
        "numpy memmap", "numpy DataSource", "numpy core.multiarray.fromfile", "numpy ndarray.tofile",
        "numpy.core.multiarray fromfile", "numpy._core.multiarray ndarray", "numpy._core.numeric fromfile",
        "numpy.testing._private.utils runstring", "_codecs lookup", "_codecs decode", "codecs encode",
        "copy_reg _reconstructor", "functools partial", "fewshot.data.sources.pickles ADMITTED",
    ],
)  # fmt: skip
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
    refused(ODD[name], "no whole pickle of arrays, strings and numbers")


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
        for value in (0, 0x2E, 0x52, whole[at] ^ 1):
            with contextlib.suppress(ValueError):
                loaded(whole[:at] + bytes([value]) + whole[at + 1 :])


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x8d", b"\x96", b"\x95"])
def test_a_length_beyond_the_file_takes_no_memory(tmp_path: Path, opcode: bytes):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x05" + opcode + struct.pack("<Q", 1 << 33) + b"x.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (tmp_path / "a.pkl").open("rb") as file, pytest.raises(ValueError, match="no whole pickle"):
        pickles.load(file)
    # In KiB. What was claimed, 8 GiB, may be reserved, and not written to.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 17


def test_depth_does_not_matter():
    assert isinstance(loaded(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."), list)


ITEMS: dict[str, list[Any]] = {
    "arrays": [np.random.RandomState(i).randint(0, 256, 70 + i % 9, np.uint8) for i in range(1100)],
    "columns": [np.full((70 + i, 1), i, np.uint8) for i in range(40)],
    "arrays of all kinds": list(SOUND.values()),
    "bytes": [bytes([i % 256]) * (60 + i % 9) for i in range(1100)],
    "text": ["é" * i for i in range(90)],
    "short text again and again": ["a", "b", "a"] * 700,
    "one": [b"a"],
    "none": [],
}


def streamed(data: bytes) -> list[Any]:
    return list(pickles.stream_items(io.BytesIO(data)))


def unstreamed(data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        streamed(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ITEMS)
def test_a_stream_gives_what_the_whole_pickle_holds(name: str, protocol: int):
    data = pickle.dumps(ITEMS[name], protocol)
    found, meant = streamed(data), pickle.loads(data)
    assert len(found) == len(meant)
    for one, other in zip(found, meant, strict=True):
        assert isinstance(one, type(other)) and np.array_equal(np.asarray(one), other)
        assert not isinstance(one, np.ndarray) or (one.dtype, one.shape) == (other.dtype, other.shape)


def test_a_stream_gives_what_python_2_wrote():
    again = b"h\x01h\x02K\x00\x85U\x01b\x87R(K\x01K\x02\x85h\x03\x89" + string("\x00\xff") + b"tb"
    first = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x04(K\x01K\x03\x85"
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87Rq\x03(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + string("abc")
        + b"tb"
    )
    found = streamed(
        b"\x80\x02]q\x00(" + first + again + string("caf\xe9") + b"e(" + again + b"e" + string("z") + b"a."
    )
    assert [bytes(item) if isinstance(item, np.ndarray) else item for item in found] == [
        b"abc",
        b"\x00\xff",
        "café",
        b"\x00\xff",
        "z",
    ]


def test_a_stream_keeps_nothing(tmp_path: Path):
    with (tmp_path / "a.pkl").open("wb") as file:
        pickle.dump([np.full(10_000, i % 256, np.uint8) for i in range(2500)], file, 4)
    assert (tmp_path / "a.pkl").stat().st_size > 25e6
    tracemalloc.start()
    try:
        with (tmp_path / "a.pkl").open("rb") as file:
            assert sum(int(item[-1]) for item in pickles.stream_items(file)) == sum(i % 256 for i in range(2500))
        assert tracemalloc.get_traced_memory()[1] < 12e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "kind",
    [tuple, lambda arrays: np.array([*arrays, None], object)[:-1], lambda a: {"data": a}, lambda a: (a, 1, 2, 3)],
)
def test_what_is_no_list_is_refused_at_its_first_object(kind: Any, protocol: int):
    arrays = [np.full(70_000, i, np.uint8) for i in range(40)]
    file = io.BytesIO(pickle.dumps(kind(arrays), protocol))
    with pytest.raises(ValueError, match=r"no whole pickle of one list.*something else than a list"):
        next(pickles.stream_items(file))
    assert file.tell() < 200_000


@pytest.mark.parametrize("content", [(), {}, "text", b"bytes", 7, None, FLOATS, (b"a",), ([b"a"],), ([b"a"], 1, 2, 3)])
@pytest.mark.parametrize("protocol", [0, 4])
def test_whatever_else_is_no_list_is_refused(content: Any, protocol: int):
    unstreamed(pickle.dumps(content, protocol), "something else than a list")


@pytest.mark.parametrize("item", [1, None, [b"a"], (b"a",), {}, np.float32(1), ()])
def test_a_list_of_anything_else_is_refused(item: Any):
    unstreamed(pickle.dumps([b"a", item]), f"the list holds something else, {type(item).__name__}")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_image_that_is_there_twice_is_refused(protocol: int):
    image = np.zeros(100, np.uint8)
    unstreamed(pickle.dumps([image, FLOATS, image], protocol), "refers to one image twice")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_streamed_pickle_runs_nothing(tmp_path: Path, protocol: int):
    attack = Attack(tmp_path / "made")
    for content in (attack, [attack], [b"image", attack], [[attack]], [np.array([attack], dtype=object)]):
        unstreamed(pickle.dumps(content, protocol), "it asks for '|something else than a list")
        assert not attack.path.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"]0](U\x01ae.", b"](U\x01ae](U\x01be.", b"](U\x01a.", b"](U\x01aeU\x01b.", b"(U\x01al.", b"]q\x00h\x00a.",
        b"]](U\x01aee.", b"0.", b".", b"(((.", b"", b"\xfe", b"<!DOCTYPE html><html>",
    ],
)  # fmt: skip
def test_opcodes_that_python_does_not_write_for_a_list_are_refused(data: bytes):
    unstreamed(data, "no whole pickle of one list of arrays, bytes or strings")


@pytest.mark.parametrize("protocol", [0, 4])
def test_a_streamed_pickle_with_any_byte_cut_or_changed_is_read_or_refused(protocol: int):
    whole = pickle.dumps([np.arange(3, dtype=np.uint8), b"abc", FLOATS], protocol)
    for at in range(len(whole)):
        unstreamed(whole[:at], "no whole pickle")
        for value in (0, 0x2E, 0x61, whole[at] ^ 1):
            with contextlib.suppress(ValueError):
                streamed(whole[:at] + bytes([value]) + whole[at + 1 :])
