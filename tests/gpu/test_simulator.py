"""The simulator itself, on kernels of a few instructions: what it computes, what it finds, and what it refuses."""

import math
import struct

import pytest
from simulator import Fault, Memory, Module, counted, faults, only_blocks, recording, replay, report

HEADER = ".version 9.0\n.target sm_90\n.address_size 64\n"


def entry(body, declarations=""):
    registers = ".reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .f32 %f<16>; .reg .f64 %fd<8>;"
    return f"{HEADER}{declarations}\n.visible .entry k(.param .u64 p)\n{{ {registers}\n{body}\nret;\n}}"


#: %rd1: the memory; %r1: the thread of the block; %rd3: its 32-bit word.
START = "ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;\n"


def run(body, data=bytes(128), declarations="", **launch):
    """The memory after the kernel."""
    with Memory(data) as memory:
        Module(entry(START + body, declarations)).launch("k", struct.pack("Q", memory.address), **launch)
        return memory.read()


def words(body, inputs=range(32), **launch):
    """What body leaves in %r2, given inputs in %r3."""
    data = struct.pack("32I", *(value & 0xFFFFFFFF for value in inputs))
    result = run(f"ld.global.u32 %r3, [%rd3]; {body} st.global.u32 [%rd3], %r2;", data, **launch)
    return list(struct.unpack("32I", result))


def floats(body, inputs):
    """What body leaves in %f2, given inputs in %f1."""
    data = struct.pack("32f", *inputs, *[0.0] * (32 - len(inputs)))
    result = run(f"ld.global.f32 %f1, [%rd3]; {body} st.global.f32 [%rd3], %f2;", data)
    return list(struct.unpack("32f", result))[: len(inputs)]


INTEGERS = [0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xD2511F53, 0x12345678, *range(100, 122)]


def signed(value, bits=32):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("add.s32 %r2, %r3, 5;", lambda a: a + 5),
        ("sub.s32 %r2, 3, %r3;", lambda a: 3 - a),
        ("mul.lo.s32 %r2, %r3, -845247145;", lambda a: a * 0xCD9E8D57),
        ("mul.hi.u32 %r2, %r3, 0xCD9E8D57;", lambda a: a * 0xCD9E8D57 >> 32),
        ("mul.hi.s32 %r2, %r3, -7;", lambda a: signed(a) * -7 >> 32),
        ("mad.lo.s32 %r2, %r3, 3, %r3;", lambda a: 4 * a),
        ("div.s32 %r2, %r3, 7;", lambda a: int(math.copysign(abs(signed(a)) // 7, signed(a)))),
        ("rem.u32 %r2, %r3, 7;", lambda a: a % 7),
        ("shr.s32 %r2, %r3, 4;", lambda a: signed(a) >> 4),
        ("shl.b32 %r2, %r3, 33;", lambda a: 0),
        ("shf.l.wrap.b32 %r2, %r3, %r3, 8;", lambda a: a << 8 | a >> 24),
        ("bfe.u32 %r2, %r3, 4, 8;", lambda a: a >> 4 & 0xFF),
        ("bfe.s32 %r2, %r3, 4, 8;", lambda a: signed(a >> 4 & 0xFF, 8)),
        ("bfi.b32 %r2, %r3, 0, 8, 4;", lambda a: (a & 15) << 8),
        ("popc.b32 %r2, %r3;", lambda a: bin(a).count("1")),
        ("clz.b32 %r2, %r3;", lambda a: 32 - a.bit_length()),
        ("prmt.b32 %r2, %r3, 0, 0x0123;", lambda a: int.from_bytes(a.to_bytes(4, "little"), "big")),
        ("lop3.b32 %r2, %r3, 255, 15, 0x96;", lambda a: a ^ 255 ^ 15),
        ("min.s32 %r2, %r3, 3;", lambda a: min(signed(a), 3)),
        ("abs.s32 %r2, %r3;", lambda a: abs(signed(a))),
        ("setp.lt.s32 %p1, %r3, 2; selp.b32 %r2, 1, 0, %p1;", lambda a: signed(a) < 2),
        ("setp.lt.u32 %p1|%p2, %r3, 2; selp.b32 %r2, 1, 0, %p2;", lambda a: a >= 2),
        ("cvt.u16.u32 %h1, %r3; cvt.s32.s8 %r2, %h1;", lambda a: signed(a, 8)),
        ("mov.b32 {%h1, %h2}, %r3; mov.b32 %r2, {%h2, %h1};", lambda a: a << 16 | a >> 16),
        ("add.cc.u32 %r4, %r3, 1; addc.u32 %r2, 0, 0;", lambda a: a == 0xFFFFFFFF),
        ("sub.cc.u32 %r4, %r3, 1; subc.u32 %r2, 5, 0;", lambda a: 4 if a == 0 else 5),
        ("mul.wide.s32 %rd4, %r3, %r3; shr.u64 %rd4, %rd4, 32; cvt.u32.u64 %r2, %rd4;", lambda a: signed(a) ** 2 >> 32),
    ],
    ids=lambda value: value.split()[0] + value[-24:-1] if isinstance(value, str) else "",
)
def test_integers(body, expected):
    assert words(body, INTEGERS) == [int(expected(a)) & 0xFFFFFFFF for a in INTEGERS]


def single(value):
    return struct.unpack("f", struct.pack("f", value))[0]


SQUARED_IN_DOUBLE = "cvt.f64.f32 %fd1, %f1; mul.rn.f64 %fd1, %fd1, %fd1; cvt.rn.f32.f64 %f2, %fd1;"


def test_floats_round_once_each():
    values = [0.1, 1.5, -2.75, 3e-39, 1e30, 16777217.0, -0.0]
    values = [single(v) for v in values]
    assert floats("mul.rn.f32 %f2, %f1, %f1;", values) == [
        single(v * v) if v != 1e30 and abs(v) < 1e19 else math.inf for v in values
    ]
    assert floats("add.rn.f32 %f2, %f1, 0f3F800000;", values) == [single(v + 1.0) for v in values]
    assert floats(SQUARED_IN_DOUBLE, values[:3]) == [single(v * v) for v in values[:3]]
    # 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: fma keeps the last term, a rounded product does not.
    near_one = [1 + 2.0**-12]
    assert floats("fma.rn.f32 %f2, %f1, %f1, 0fBF800000;", near_one) == [2.0**-11 + 2.0**-24]
    assert floats("mul.rn.f32 %f2, %f1, %f1; add.rn.f32 %f2, %f2, 0fBF800000;", near_one) == [2.0**-11]


def test_a_reciprocal_root_is_some_units_off():
    values = [single(1 + i / 97) for i in range(32)]
    found = floats("rsqrt.approx.ftz.f32 %f2, %f1;", values)
    units = {round((root - single(value**-0.5)) * 2**24) for root, value in zip(found, values, strict=True)}
    assert units == {-2, -1, 0, 1, 2}


def test_half_types_round_to_nearest_even():
    values = [1.0, 1 + 2.0**-9, 1 + 3 * 2.0**-9, 65504.0, 2.0**-25, 70000.0]
    assert floats("cvt.rn.bf16.f32 %h1, %f1; cvt.f32.bf16 %f2, %h1;", values[:3]) == [1.0, 1.0, 1 + 2.0**-7]
    assert floats("cvt.rn.f16.f32 %h1, %f1; cvt.f32.f16 %f2, %h1;", values[3:]) == [65504.0, 0.0, math.inf]


def test_nan_is_one_and_conversions_saturate():
    nan, inf = math.nan, math.inf
    assert words("add.rn.f32 %f1, 0f7F800000, 0fFF800000; mov.b32 %r2, %f1;")[0] == 0x7FFFFFFF
    truncated = "cvt.rzi.s32.f32 %r2, %f1; cvt.rn.f32.s32 %f2, %r2;"
    assert floats(truncated, [nan, inf, -inf, -1.9]) == [
        0.0,
        2.0**31,
        -(2.0**31),
        -1.0,
    ]
    assert floats("min.f32 %f2, %f1, 0f3F800000;", [nan, inf, -3.0]) == [1.0, 1.0, -3.0]


def test_lanes_part_and_meet_again():
    body = """
      and.b32 %r4, %r3, 3; mov.u32 %r2, 0; mov.u32 %r5, 0;
    LOOP:
      setp.ge.u32 %p1, %r5, %r4; @%p1 bra DONE;
      add.s32 %r2, %r2, %r3; add.s32 %r5, %r5, 1; bra.uni LOOP;
    DONE:
      setp.eq.s32 %p2, %r3, %r3;
      vote.sync.ballot.b32 %r6, %p2, -1;
      setp.eq.s32 %p3, %r6, -1; @!%p3 trap;
    """
    assert words(body) == [i * (i & 3) for i in range(32)]


def test_branches_by_a_table():
    body = """
      and.b32 %r4, %r3, 1;
    TABLE: .branchtargets EVEN, ODD;
      brx.idx %r4, TABLE;
    EVEN: mov.u32 %r2, 10; bra.uni END;
    ODD: mov.u32 %r2, 20;
    END:
    """
    assert words(body) == [10, 20] * 16


def test_functions_are_called_by_some_lanes():
    function = """
      .func (.param .b32 result) twice(.param .b32 a) {
        .reg .b32 %r<3>; ld.param.u32 %r1, [a]; add.s32 %r2, %r1, %r1; st.param.b32 [result], %r2; ret;
      }"""
    body = """
      setp.lt.u32 %p1, %r3, 5; mov.u32 %r2, %r3; @!%p1 bra SKIP;
      { .param .b32 one; st.param.b32 [one], %r3; .param .b32 back;
        call.uni (back), twice, (one); ld.param.u32 %r2, [back]; }
    SKIP:
    """
    assert words(body, declarations=function) == [2 * i if i < 5 else i for i in range(32)]


def test_shuffles_and_votes():
    assert words("shfl.sync.bfly.b32 %r2, %r3, 1, 31, -1;") == [i ^ 1 for i in range(32)]
    assert words("shfl.sync.down.b32 %r2|%p1, %r3, 4, 31, -1;") == [min(i + 4, 31) if i < 28 else i for i in range(32)]
    assert words("redux.sync.add.u32 %r2, %r3, -1;") == [496] * 32


SHARED = ".shared .align 4 .b8 s[256];"
THROUGH_SHARED = "shl.b32 %r4, %r1, 2; mov.u32 %r5, s; add.s32 %r6, %r5, %r4; xor.b32 %r7, %r4, 128; add.s32 %r7, %r5, %r7;\n"


def test_shared_memory_between_warps():
    body = THROUGH_SHARED + "st.shared.u32 [%r6], %r1; bar.sync 0; ld.shared.u32 %r2, [%r7]; st.global.u32 [%rd3], %r2;"
    result = run(body, bytes(256), SHARED, block=(64, 1, 1))
    assert list(struct.unpack("64I", result)) == [i ^ 32 for i in range(64)]


FAULTS = {
    "past the end": ("st.global.u32 [%rd3+4], %r1;", "at byte 128 of an allocation of 128 bytes"),
    "before the start": ("st.global.u32 [%rd3+-4], %r1;", "before an allocation"),
    "no memory": ("ld.global.u32 %r2, [64];", "no allocation"),
    "misaligned": ("ld.global.u32 %r2, [%rd1+2];", "misaligned"),
    "misaligned vector": ("ld.global.v2.u32 {%r2, %r4}, [%rd1+4];", "misaligned"),
    "two writers": ("st.global.u32 [%rd1], %r1;", "races with a write"),
    "write and read": ("ld.global.u32 %r2, [%rd1]; st.global.u32 [%rd3], %r2;", "races with a read"),
    "constant written": ("ld.global.nc.u32 %r2, [%rd3]; st.global.u32 [%rd3], %r2;", "as constant"),
    "some lanes at a barrier": ("setp.lt.u32 %p1, %r1, 9; @%p1 bra END; bar.sync 0; END:", "23 of 32 lanes"),
    "some lanes at a vote": (
        "setp.lt.u32 %p1, %r1, 9; @%p1 bra END; vote.sync.ballot.b32 %r2, %p1, -1; END:",
        "23 of 32 lanes",
    ),
    "a lane that votes for others": ("vote.sync.ballot.b32 %r2, %p1, 15;", "leaves out"),
    "the end by a trap": ("trap;", "stops the kernel"),
    "contraction": ("add.f32 %f1, %f2, %f3;", "may contract"),
    "approximation": ("sin.approx.f32 %f1, %f2;", "approximate"),
    "subnormals": ("add.rn.ftz.f32 %f1, %f2, %f3;", "subnormal"),
    "an unknown instruction": ("wgmma.fence.sync.aligned;", "'wgmma.fence.sync.aligned' is not known"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(name):
    body, text = FAULTS[name]
    before = faults()
    with pytest.raises(Fault, match=text):
        run(body)
    assert faults() == before + 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (THROUGH_SHARED + "st.shared.u32 [%r6], %r1; ld.shared.u32 %r2, [%r7];", "nothing has written|races"),
        (THROUGH_SHARED + "ld.shared.u32 %r2, [%r6];", "nothing has written"),
        (
            THROUGH_SHARED + "st.shared.u32 [%r6], %r1; bar.sync 0; ld.shared.u32 %r2, [%r7]; st.shared.u32 [%r6], %r2;",
            "races with a",
        ),
        (THROUGH_SHARED + "st.shared.u32 [%r6+252], %r1;", "of the 256 bytes of shared memory"),
        ("setp.lt.u32 %p1, %r1, 32; @%p1 bra END; bar.sync 0; END:", "other warps"),
    ],
    ids=["no barrier", "unwritten", "one barrier of two", "past the end", "one warp of two"],
)
def test_faults_of_shared_memory_are_found(body, text):
    with pytest.raises(Fault, match=text):
        run(body, bytes(256), SHARED, block=(64, 1, 1))


@pytest.mark.parametrize(
    ("launch", "text"),
    [
        ({"block": (1025, 1, 1)}, "1025 threads"),
        ({"grid": (1, 65536, 1)}, "65536"),
        ({"grid": (0, 1, 1)}, "size 0"),
        ({"shared": 49153}, "bytes of shared memory"),
    ],
    ids=["threads", "grid", "empty", "shared"],
)
def test_limits_of_a_launch(launch, text):
    with pytest.raises(Fault, match=text):
        run("", **launch)


def test_a_warp_that_is_not_full_cannot_vote_for_all():
    with pytest.raises(Fault, match="8 of 8 lanes|others never come"):
        run("vote.sync.ballot.b32 %r2, %p1, -1;", block=(8, 1, 1))


def test_chosen_blocks():
    body = "mov.u32 %r2, %ctaid.x; mul.wide.u32 %rd4, %r2, 4; add.s64 %rd4, %rd1, %rd4; st.global.u32 [%rd4], %r2;"
    with only_blocks(1, 3):
        result = run(body, bytes(16), grid=(4, 1, 1), block=(1, 1, 1))
    assert struct.unpack("4I", result) == (0, 1, 0, 3)


def test_recorded_launches_read_memory_when_they_are_replayed():
    with Memory(struct.pack("32I", *range(32))) as memory:
        module = Module(entry(START + "ld.global.u32 %r2, [%rd3]; add.s32 %r2, %r2, %r2; st.global.u32 [%rd3], %r2;"))
        with recording():
            module.launch("k", struct.pack("Q", memory.address))
        assert struct.unpack("32I", memory.read())[1] == 1
        replay()
        replay()
        assert struct.unpack("32I", memory.read()) == tuple(4 * i for i in range(32))


def test_counts_and_coverage():
    body = """
      setp.gt.u32 %p1, %r1, 99; @%p1 bra RARE;
      st.global.u32 [%rd3], %r1; bra.uni END;
    RARE: st.global.u32 [%rd1], %r1;
    END:
    """
    with Memory(bytes(128)) as memory:
        module = Module(entry(START + body).replace("entry k(", "entry only_here("))
        # Not from zero: the coverage of all tests is told at the end.
        with counted(sectors=True, anew=False):
            module.launch("only_here", struct.pack("Q", memory.address))
        kernel = next(k for k in report() if k["kernel"] == "only_here")
    assert kernel["instructions"] == 32 * 9
    assert kernel["stores"] == {"requests": 1, "sectors": 4, "distinct": 4, "widest": 4}
    entered = {block["label"]: block["entered"] for block in kernel["blocks"]}
    assert entered == {"start": 32, "start+1": 32, "RARE": 0, "END": 32}
