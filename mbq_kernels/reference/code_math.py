"""The fields that codes are packed into, in PyTorch. Its twins: csrc/math/code_math.h and triton/code_math.py."""

import torch


def to_fields(codes, bits: int, signed: bool):
    """What is stored of codes: the low bits; at signed 1 bit (code + 1) / 2"""
    return (codes >= 0).to(codes.dtype) if signed and bits == 1 else codes & (2**bits - 1)


def from_fields(fields, bits: int, signed: bool):
    """Its inverse: unsigned as it is, signed (field ^ s) - s, s the sign bit; at signed 1 bit 2 field - 1"""
    if not signed:
        return fields
    sign = 1 << (bits - 1)
    return 2 * fields - 1 if bits == 1 else (fields ^ sign) - sign


def gather_fields(fields, bits: int):
    """Fields along the last axis side by side in bytes, the first one lowest; a row ends with a byte, filled with 0"""
    per_byte = 8 // bits
    fields = torch.nn.functional.pad(fields, (0, -fields.shape[-1] % per_byte))
    fields = fields.reshape(*fields.shape[:-1], fields.shape[-1] // per_byte, per_byte)
    return (fields << torch.arange(0, 8, bits, device=fields.device, dtype=fields.dtype)).sum(-1)


def spread_fields(packed, bits: int):
    """Its inverse: 8 / bits fields a byte."""
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=packed.dtype)
    fields = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return fields.reshape(*packed.shape[:-1], packed.shape[-1] * (8 // bits))
