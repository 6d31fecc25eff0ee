"""The reader of machine code finds the fast path of small kernels that are written out here."""

import pytest
import sass

DIVISION = """
MUFU.RCP R2, R3 ;
FCHK P0, R4, R3 ;
@!P0 BRA {after} ;
CALL.REL.NOINC 0x900 ;
MOV R5, R6 ;
"""
LOOP = """
S2R R0, SR_TID.X ;
@P1 EXIT ;
LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x200] ;
FADD R4, R4, R9 ;
""" + DIVISION.format(after="0x0a0") + """
STG.E.128 desc[UR4][R2.64], R4 ;
STG.E.128 desc[UR4][R2.64+0x200], R8 ;
@!P2 BRA 0x020 ;
LDG.E R4, desc[UR4][R2.64] ;
@!P3 BRA 0x0d0 ;
EXIT ;
"""
LEVELS = """
LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
LDG.E R8, desc[UR4][R10.64] ;
STG.E.128 desc[UR4][R2.64], R4 ;
@P0 BRA 0x010 ;
@P1 EXIT ;
LDG.E.64.STRONG.GPU R4, desc[UR4][R2.64] ;
@!P2 BRA 0x050 ;
EXIT ;
"""


def listing(code):
    """Return a kernel as cuobjdump prints it."""
    lines = (line for line in code.splitlines() if line)
    return "\n".join(f"        /*{16 * i:04x}*/   {line}   /* 0x000000ff00047b82 */" for i, line in enumerate(lines))


def test_the_round_of_a_loop_without_its_subroutine():
    fast = sass.fast_path(listing(LOOP))
    way = fast.way
    assert [i.address // 16 for i in way.steps] == [2, 3, 4, 5, 6, 7, 10, 11, 12]
    assert sass.accesses(way) == {("LDG", 16): 2, ("STG", 16): 2}
    assert sass.loaded_first(way) == 32 and fast.around == 5


@pytest.mark.parametrize("levels", [1, 4])
def test_a_piece_in_one_go_with_a_loop_over_bit_widths(levels):
    """The sums of the last block, for which others wait, are no part of it."""
    way, around = vars(sass.fast_path(listing(LEVELS), levels)).values()
    assert [i.address // 16 for i in way.steps] == [0, *[1, 2, 3] * levels, 4] and around == 0
    assert sass.accesses(way)["STG", 16] == levels


def test_a_subroutine_is_no_short_cut():
    way = sass.fast_path(listing("LDG.E.128 R4, desc[UR4][R2.64] ;\n@P0 BRA 0x040 ;\nCALL.REL.NOINC 0x900 ;\n"
                                 "BRA 0x070 ;\nFADD R4, R4, R4 ;\nFADD R5, R4, R4 ;\nFADD R6, R4, R4 ;\nEXIT ;\n")).way
    assert [i.address // 16 for i in way.steps] == [0, 1, 4, 5, 6, 7]


def test_a_piece_in_one_go_goes_before_a_loop_that_moves_as_much():
    way = sass.fast_path(listing("@P0 BRA 0x040 ;\nLDG.E.128 R4, desc[UR4][R2.64] ;\nMOV R1, R4 ;\nEXIT ;\n"
                                 "LDG.E.128 R4, desc[UR4][R2.64] ;\n@P1 BRA 0x040 ;\nEXIT ;\n")).way
    assert [i.address // 16 for i in way.steps] == [0, 1, 2, 3]


@pytest.mark.parametrize("name, access", [
    ("LDG.E.128.CONSTANT", ("LDG", 16)), ("LDG.E", ("LDG", 4)), ("LDG.E.U16.CONSTANT", ("LDG", 2)),
    ("STG.E.64", ("STG", 8)), ("LDG.E.64.STRONG.GPU", None), ("LDS.128", None), ("LDG.E.EF.128", ("LDG", 16)),
    ("LDG.E.LTC128B.128.CONSTANT", ("LDG", 16)), ("STG.E.U8", ("STG", 1))])
def test_accesses(name, access):
    assert sass.Instruction(0, "", name, "").access == access


@pytest.mark.parametrize("registers, shared, threads, blocks", [
    (32, 0, 256, 8), (48, 0, 256, 5), (49, 0, 256, 4), (64, 0, 256, 4), (70, 0, 256, 3), (32, 100 * 1024, 256, 2),
    (255, 0, 128, 2), (16, 0, 32, 32)])
def test_blocks_of_a_multiprocessor(registers, shared, threads, blocks):
    from machine_code import resident

    assert resident(registers, shared, threads) == blocks
