"""What is read off the text of a compiled program."""
from glipv2_jax import hlo

PROGRAM = """HloModule step, entry_computation_layout={()->f32[]}

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %sum = f32[4,8]{1,0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
  ROOT %out = (s32[], f32[4,8]) tuple(%i, %sum)
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%fused (p: bf16[2,16]) -> bf16[2,16] {
  ROOT %p = bf16[2,16]{1,0} parameter(0)
}

ENTRY %main (p0: bf16[16]) -> f32[] {
  %gathered = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%p0), dimensions={0}
  %done = bf16[64]{0} all-gather-done(%gathered)
  %both = (f32[10]{0}, f32[6]{0}) all-reduce(%a, %b), to_apply=%add
  %loop = (s32[], f32[4,8]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %r = f32[] constant(0)
}
"""


def test_collectives_are_counted_as_often_as_their_loop_runs():
    assert hlo.Program(PROGRAM).collectives() == {"all-gather": [1, 128], "all-reduce": [4, 64 + 3 * 128]}


# A loop that reads one row of a table of ten at a time, squares it on the chip and writes it into its place of another.
LOOP = """HloModule loop

%read (p0: f32[10,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[10,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %row = f32[1,8]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,8}
}

%write (p2: f32[10,8], p3: f32[1,8], p4: s32[]) -> f32[10,8] {
  %p2 = f32[10,8]{1,0} parameter(0)
  %p3 = f32[1,8]{1,0} parameter(1)
  %p4 = s32[] parameter(2)
  ROOT %all = f32[10,8]{1,0} dynamic-update-slice(%p2, %p3, %p4)
}

%cond (u: (s32[], f32[10,8], f32[10,8])) -> pred[] {
  %u = (s32[], f32[10,8]{1,0}, f32[10,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(10)
  %at = s32[]{:T(128)} get-tuple-element(%u), index=0
  ROOT %more = pred[] compare(%at, %limit), direction=LT
}

%body (t: (s32[], f32[10,8], f32[10,8])) -> (s32[], f32[10,8], f32[10,8]) {
  %t = (s32[], f32[10,8]{1,0}, f32[10,8]{1,0}) parameter(0)
  %i = s32[]{:S(1)} get-tuple-element(%t), index=0
  %table = f32[10,8]{1,0} get-tuple-element(%t), index=1
  %kept = f32[10,8]{1,0} get-tuple-element(%t), index=2
  %row = f32[1,8]{1,0:S(1)} fusion(%table, %i), kind=kLoop, calls=%read, metadata={op_name="jit(f)/fpn/slice"}
  %square = f32[1,8]{1,0:T(8,128)S(1)} multiply(%row, %row), metadata={op_name="jit(f)/fpn/square"}
  %written = f32[10,8]{1,0} fusion(%kept, %square, %i), kind=kLoop, calls=%write, metadata={op_name="jit(f)/heads/write"}
  ROOT %out = (s32[]{:S(1)}, f32[10,8]{1,0}, f32[10,8]{1,0}) tuple(%i, %table, %written)
}

ENTRY %main (p: f32[10,8], q: f32[10,8]) -> f32[10,8] {
  %p = f32[10,8]{1,0} parameter(0)
  %q = f32[10,8]{1,0} parameter(1)
  %ahead = (f32[10,8]{1,0:S(1)}, f32[10,8]{1,0}, u32[]{:S(2)}) copy-start(%q)
  %there = f32[10,8]{1,0:S(1)} copy-done(%ahead)
  %sum = f32[10,8]{1,0} add(%p, %there), metadata={op_name="jit(f)/sum"}
  %start = (s32[]{:S(1)}, f32[10,8]{1,0}, f32[10,8]{1,0}) tuple(%zero, %sum, %p)
  %loop = (s32[]{:S(1)}, f32[10,8]{1,0}, f32[10,8]{1,0}) while(%start), condition=%cond, body=%body
  %result = f32[10,8]{1,0} get-tuple-element(%loop), index=2
  %part = f32[2,8]{1,0:S(1)} slice(%p), slice={[0:2], [0:8]}, metadata={op_name="jit(f)/part"}
  %changed = f32[10,8]{1,0} dynamic-update-slice(%p, %part, %zero), metadata={op_name="jit(f)/changed"}
  %gathers = ((f32[1,8]{1,0}, f32[2,8]{1,0}), (f32[2,8]{1,0}, f32[4,8]{1,0}), u32[]{:S(2)}) all-gather-start(%a, %b), dimensions={0}
  %sums = (f32[3]{0}, f32[5]{0}) all-reduce-start(%c, %d), to_apply=%add
  ROOT %chosen = f32[10,8]{1,0} conditional(%yes, %result, %result), branch_computations={%seldom, %usual}
}

%seldom (s: f32[10,8]) -> f32[10,8] {
  %s = f32[10,8]{1,0} parameter(0)
  ROOT %twice = f32[10,8]{1,0} multiply(%s, %s), metadata={op_name="jit(f)/seldom"}
}

%usual (s: f32[10,8]) -> f32[10,8] {
  %s = f32[10,8]{1,0} parameter(0)
  ROOT %negated = f32[10,8]{1,0} negate(%s), metadata={op_name="jit(f)/usual"}
}
"""


def test_slices_updates_in_place_and_the_chips_own_memory_are_counted_for_what_they_move():
    row, table = 8 * 4, 10 * 8 * 4
    program = hlo.Program(LOOP)
    assert program.collectives() == {"all-gather": [1, 6 * row], "all-reduce": [1, 32]}
    moved = program.traffic(lambda origin: origin.removeprefix("jit(f)/").split("/")[0] or "ahead")
    assert moved.pop("ahead") >= table            # the copy that is started early, and collectives
    assert moved == {
        "fpn": 10 * row, "heads": 10 * row, "part": 2 * row, "changed": 2 * row, "sum": 2 * table, "usual": 2 * table}


# One collective that the compiler has spread over two fusions that compute something else meanwhile, as it prints them.
SPREAD = """HloModule spread

%begin (p: f32[4,8]) -> (f32[4,8], f32[16,8]) {
  %p = f32[4,8]{1,0} parameter(0)
  %g.1 = f32[16,8]{1,0} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %t = (f32[4,8]{1,0}, f32[16,8]{1,0}) tuple(%p, %g.1)
}

%async_collective_fusion.1 (p0: f32[4,8], p1: f32[16,8], p2: f32[10]) -> (f32[10], f32[4,8], f32[16,8]) {
  %p0 = f32[4,8]{1,0} parameter(0)
  %p1 = f32[16,8]{1,0} parameter(1)
  %p2 = f32[10]{0} parameter(2)
  %g.2 = f32[16,8]{1,0} all-gather(%p0), channel_id=7, dimensions={0}
  %square = f32[10]{0} multiply(%p2, %p2)
  ROOT %t = (f32[10]{0}, f32[4,8]{1,0}, f32[16,8]{1,0}) tuple(%square, %p0, %g.2)
}

%end (p3: f32[16,8]) -> f32[16,8] {
  %p3 = f32[16,8]{1,0} parameter(0)
  ROOT %g.3 = f32[16,8]{1,0} all-gather(%p3), channel_id=7, dimensions={0}
}

ENTRY %main (a: f32[4,8], b: f32[10]) -> f32[10] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[10]{0} parameter(1)
  %async-collective-start = (f32[4,8]{1,0}, f32[16,8]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %s0 = f32[4,8]{1,0} get-tuple-element(%async-collective-start), index=0
  %s1 = f32[16,8]{1,0} get-tuple-element(%async-collective-start), index=1
  %m = (f32[10]{0}, f32[4,8]{1,0}, f32[16,8]{1,0}) fusion(%s0, %s1, %b), kind=kOutput, calls=%async_collective_fusion.1
  %m2 = f32[16,8]{1,0} get-tuple-element(%m), index=2
  %async-collective-done = f32[16,8]{1,0} fusion(%m2), kind=kCustom, calls=%end
  ROOT %r = f32[10]{0} get-tuple-element(%m), index=0
}
"""


def test_a_collective_that_is_spread_over_fusions_counts_once_and_its_arrays_do_not_move():
    program = hlo.Program(SPREAD)
    assert program.collectives() == {"all-gather": [1, 16 * 8 * 4]}
    assert program.traffic(lambda origin: "all") == {"all": 2 * 10 * 4}


LIBRARY = """HloModule library

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%scattered (t: f32[1000,8], i: s32[10,1], u: bf16[10,8]) -> f32[1000,8] {
  %t = f32[1000,8]{1,0} parameter(0)
  %i = s32[10,1]{1,0} parameter(1)
  %u = bf16[10,8]{1,0} parameter(2)
  %w = f32[10,8]{1,0} convert(%u)
  ROOT %s = f32[1000,8]{1,0} scatter(%t, %i, %w), to_apply=%add
}

ENTRY %main (a: bf16[64,64], b: bf16[64,64], t: f32[1000,8], i: s32[10,1], u: f32[10,8], v: bf16[10,8]) -> f32[1000,8] {
  %a = bf16[64,64]{1,0} parameter(0)
  %b = bf16[64,64]{1,0} parameter(1)
  %t = f32[1000,8]{1,0} parameter(2)
  %i = s32[10,1]{1,0} parameter(3)
  %u = f32[10,8]{1,0} parameter(4)
  %v = bf16[10,8]{1,0} parameter(5)
  %product = (bf16[64,64]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", metadata={op_name="product"}
  %s = f32[1000,8]{1,0} scatter(%t, %i, %u), to_apply=%add, metadata={op_name="scatter"}
  ROOT %f = f32[1000,8]{1,0} fusion(%s, %i, %v), kind=kInput, calls=%scattered, metadata={op_name="fused"}
}
"""


def test_scratch_of_libraries_and_rows_that_no_scatter_changes_are_not_moved():
    moved = hlo.Program(LIBRARY).traffic(lambda origin: origin)
    rows, indices = 10 * 8 * 4, 10 * 4
    assert +moved == {"product": 3 * 64 * 64 * 2, "scatter": 3 * rows + indices, "fused": 2 * rows + rows // 2 + indices}
