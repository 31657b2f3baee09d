"""``info registers`` as QEMU 7.2 prints it, whole and damaged."""

from __future__ import annotations

import pytest
from virtintrospect_kvm.cpudump import parse

from virtintrospect.errors import MemoryAccessError

LONG = """
CPU#0
RAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000001 RDX=0000000000000000
RSI=0000000000000083 RDI=00000000000ad7bc RBP=ffffffff9ac10940 RSP=ffffffff9ac03e88
R8 =0000000000000000 R9 =0000000000000001 R10=0000000000000001 R11=0000000000000000
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=00000000000147b0
RIP=ffffffff99c93f8f RFL=00000212 [----A--] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 0000000000000000 00000000 00000000
GS =0000 ffff893ddee00000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe7960a5c000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe7960a5a000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00000000174386f8 CR3=00000000020b2000 CR4=00750ef0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
"""

LEGACY = """EAX=00000000 EBX=00000001 ECX=00000002 EDX=00000663
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00006f00
EIP=000ebdde EFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0010 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
CS =0008 00000000 ffffffff 00c09b00 DPL=0 CS32 [-RA]
SS =0010 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
DS =0010 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
FS =0010 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
GS =0010 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
LDT=0000 00000000 0000ffff 00008200 DPL=0 LDT
TR =0000 00000000 0000ffff 00008b00 DPL=0 TSS32-busy
GDT=     000f6200 00000037
IDT=     000f623e 00000000
CR0=00000011 CR2=00000000 CR3=00000000 CR4=00000000
DR0=00000000 DR1=00000000 DR2=00000000 DR3=00000000
DR6=ffff0ff0 DR7=00000400
EFER=0000000000000000
"""


def test_long_mode() -> None:
    found = parse(LONG)
    assert found["rip"] == 0xFFFFFFFF99C93F8F
    assert (found["r8"], found["r15"], found["rflags"]) == (0, 0x147B0, 0x212)
    assert (found["cr0"], found["cr3"], found["efer"]) == (0x80050033, 0x20B2000, 0xD01)
    assert (found["cs"], found["gs_base"]) == (0x10, 0xFFFF893DDEE00000)
    assert (found["idt_base"], found["idt_limit"]) == (0xFFFFFE0000000000, 0xFFF)
    assert not {"fcw", "fpr0", "eax", "cpl"} & set(found)


def test_code_of_32_bits_has_its_own_names() -> None:
    found = parse(LEGACY)
    assert (found["eip"], found["esp"], found["eflags"]) == (0xEBDDE, 0x6F00, 0x46)
    assert "rax" not in found
    assert found["gdt_base"] == 0xF6200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PC=0000000040080000 X00=0000000000000000\n",
        LONG.replace("R13=", "R99="),
        LONG.replace("RFL=00000212", "RFL=x"),
        LONG.replace("GDT=     fffffe7960a5a000", "GDT= none"),
        LONG.replace("TR =0040", "TR =40"),
        LONG.replace("CR3=00000000020b2000", "CR3=20b2000"),
        LONG.replace("EFER", "EFOR"),
        "A=0" * 100_000,
    ],
)
def test_what_is_missing_is_an_error(text: str) -> None:
    with pytest.raises(MemoryAccessError, match="info registers"):
        parse(text)
