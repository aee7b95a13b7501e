"""Parts shared by all kernels: numbers as sums of bfloat16 numbers, their products, tokens packed by tile.

Parts. A number is kept as the sum of `parts` bfloat16 numbers, each what is left after rounding to those before it, and
a product of two such numbers as the sum of the products of their parts, down to the precision kept:

    3 parts (24 bits, fp32 runs): x0*y0 + x0*y1 + x1*y0 + x1*y1 + x0*y2 + x2*y0
    2 parts (16 bits, bf16 runs): x0*y0 + x0*y1 + x1*y0
    1 part: x0*y0, for wide features in bf16 runs, as dense attention has it; and for fp64, which is not split.

Each is a product of the tensor cores, which multiply bfloat16 exactly and add in fp32 (arXiv 1904.06376). Smaller terms
are added first. Unlike TF32 operands, bfloat16 operands need no exchange of registers between two products in a row.

Packed tokens. The grid is cut into tiles of some columns. A tile of one row is a matrix of tokens by channels,

    tail = [last features | 1 | 0 ... | r_0 ... r_7],

where the features are times rstd, and of the 8 slots at the end slot (row mod 8) is rstd and the others are 0. With the
query laid out likewise, [last features | -shift | 0 ... | scores of the rows 8i to 8i+7], one product gives score minus
shift, including the row's score. And weights times this matrix, added up over 8 rows, give sums of features, the sum of
weights, and for each of the 8 rows its own sum: nothing is left to do by row. Features that do not fit in there are in
`lead`, without slots; the last two features always are in `tail`. Columns beyond the grid are 0, and 1 in `scale`.
"""

import triton
import triton.language as tl

SLOTS = tl.constexpr(8)
"""Rows whose scores share a tile's last channels. With 7 features and a one they fill 16, the least of a product."""
LEAD_BLOCK = tl.constexpr(64)
"""Channels of `lead` in one product: 128 bytes, what a row of shared memory is swizzled by."""
LOG2_E = tl.constexpr(1.4426950408889634)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _rounded(value, dtype: tl.constexpr):
    """Round to the nearest number of the dtype, to even in the middle."""
    if _INTERPRETED and dtype == tl.bfloat16:
        # The interpreter would cut off the last 16 bits.
        bits = value.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        value = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return value.to(dtype)


@triton.jit
def split(value, dtype: tl.constexpr, parts: tl.constexpr):
    """Return the first three parts of an array; those beyond `parts` are copies, which are not used."""
    first = _rounded(value, dtype)
    second, third = first, first
    if parts > 1:
        rest = value - first.to(value.dtype)
        second = _rounded(rest, dtype)
        if parts > 2:
            third = _rounded(rest - second.to(value.dtype), dtype)
    return first, second, third


@triton.jit
def _dot(left, right, total):
    """Return left @ right + total."""
    if _INTERPRETED:
        # The interpreter keeps bfloat16 as integers, and multiplies those.
        return tl.dot(left.to(total.dtype), right.to(total.dtype), total, out_dtype=total.dtype)
    return tl.dot(left, right, total, input_precision="ieee", out_dtype=total.dtype)


@triton.jit
def dot(left0, left1, left2, right0, right1, right2, total, parts: tl.constexpr):
    """Return left @ right + total, of numbers in parts."""
    if parts > 2:
        total = _dot(left2, right0, total)
        total = _dot(left0, right2, total)
        total = _dot(left1, right1, total)
    if parts > 1:
        total = _dot(left1, right0, total)
        total = _dot(left0, right1, total)
    return _dot(left0, right0, total)


@triton.jit
def load_matrix(array, row, inside_row, column, inside_column, width, other=0.0):
    """Load array[row, column] of an array (..., width), `other` where it is outside."""
    inside = inside_row[:, None] & inside_column[None, :]
    return tl.load(array + row[:, None] * width + column[None, :], mask=inside, other=other)


@triton.jit
def store_matrix(array, values, row, inside_row, column, inside_column, width):
    """Store array[row, column] of an array (..., width), nothing where it is outside."""
    inside = inside_row[:, None] & inside_column[None, :]
    tl.store(array + row[:, None] * width + column[None, :], values, mask=inside)


@triton.jit
def pack(
    features, rstd, tail, lead, scale, rows, columns, channels, lead_channels,
    tile_columns: tl.constexpr, tail_width: tl.constexpr, lead_width: tl.constexpr,
    parts: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Pack one row of one tile: (B, R, W, A) and (B, R, W) to (B, T, R, parts, tile, width) and (B, T, R, tile).

    Programs: (T * R, B).
    """
    sample = tl.program_id(1).to(tl.int64)
    place = sample * tl.num_programs(0) + tl.program_id(0)
    row = tl.program_id(0) % rows
    index = tl.arange(0, tile_columns)
    column = tl.program_id(0) // rows * tile_columns + index
    inside = column < columns
    token = row * columns + column
    features += sample * rows * columns * channels
    by = tl.load(rstd + sample * rows * columns + token, mask=inside, other=1.0)
    tl.store(scale + place * tile_columns + index, by)
    channel = tl.arange(0, tail_width)
    own = channels - lead_channels
    values = load_matrix(features + lead_channels, token, inside, channel, channel < own, channels)
    values = tl.where(channel[None, :] == own, 1.0, values * by[:, None])
    values = tl.where(channel[None, :] == row % SLOTS + (tail_width - SLOTS), by[:, None], values)
    values = tl.where(inside[:, None], values, 0.0)
    _store_parts(tail + place * parts * tile_columns * tail_width, values, index, channel, tail_width, parts)
    lead += place * lead_parts * tile_columns * lead_width
    for first in range(0, lead_width, LEAD_BLOCK):
        channel_of_lead = first + tl.arange(0, LEAD_BLOCK)
        block = load_matrix(
            features, token, inside, channel_of_lead, channel_of_lead < lead_channels, channels
        )
        _store_parts(lead, block * by[:, None], index, channel_of_lead, lead_width, lead_parts)


@triton.jit
def _store_parts(array, values, row, column, width, parts: tl.constexpr):
    """Store the parts of a matrix of `row.shape[0]` rows into an array (parts, rows, width)."""
    offsets = row[:, None] * width + column[None, :]
    for part in tl.static_range(parts):
        rounded = _rounded(values, array.dtype.element_ty)
        tl.store(array + part * row.shape[0] * width + offsets, rounded)
        values -= rounded.to(values.dtype)


@triton.jit
def locate(latents, tiles, tile_latents: tl.constexpr, chunks: tl.constexpr):
    """Return this program's sample, tile of columns, piece of rows, chunk of the lead, and latents.

    Programs: (latent tiles * chunks * T * S, B), for T tiles and S pieces.
    """
    sample = tl.program_id(1).to(tl.int64)
    latent_tiles = tl.cdiv(latents, tile_latents)
    latent = tl.program_id(0) % latent_tiles * tile_latents + tl.arange(0, tile_latents)
    other = tl.program_id(0) // latent_tiles
    place = other // chunks
    return sample, place % tiles, place // tiles, other % chunks, latent


@triton.jit
def queries_of(
    sample, query, lead_query, by_row, by_column, latents, rows, columns, channels,
    lead_width: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Return where the arrays of a sample begin."""
    first = sample * latents
    return (
        query + first * channels,
        lead_query + first * (lead_parts * lead_width),
        by_row + first * rows,
        by_column + first * columns,
    )


@triton.jit
def tokens_of(
    sample, tile, tail, lead, scale, rows, tiles, tile_columns: tl.constexpr, tail_width: tl.constexpr,
    lead_width: tl.constexpr, parts: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Return where the packed tokens of a tile of a sample begin."""
    first = (sample * tiles + tile) * rows * tile_columns
    return tail + first * (parts * tail_width), lead + first * (lead_parts * lead_width), scale + first


@triton.jit
def store_slots(row_sums, sums, latent, live, first, end, rows, tail_width: tl.constexpr):
    """Store the last 8 channels of sums (tile_latents, tail_width) as rows `first` to `end` of an array (N, R)."""
    row = first + tl.arange(0, tail_width) - (tail_width - SLOTS)
    store_matrix(row_sums, sums, latent, live, row, (row >= first) & (row < end), rows)


@triton.jit
def store_chunk(sums, by_lead, latent, live, chunk, lead_width: tl.constexpr, lead_chunk: tl.constexpr):
    """Store a chunk, (tile_latents, lead_chunk), of an array (N, lead_width)."""
    channel = chunk * lead_chunk + tl.arange(0, lead_chunk)
    store_matrix(sums, by_lead, latent, live, channel, channel < lead_width, lead_width)


@triton.jit
def load_last(query, latent, live, channels, lead_channels, tail_width: tl.constexpr):
    """Load [last features | 0 ...] of an array (N, A), (tile_latents, tail_width)."""
    channel = tl.arange(0, tail_width)
    inside = channel < channels - lead_channels
    return load_matrix(query + lead_channels, latent, live, channel, inside, channels)


@triton.jit
def load_slots(by_row, latent, live, row, rows, tail_width: tl.constexpr):
    """Load [0 ... | the 8 rows around `row`] of an array (N, R), (tile_latents, tail_width)."""
    slot = tl.arange(0, tail_width) - (tail_width - SLOTS)
    of_slot = row // SLOTS * SLOTS + slot
    return load_matrix(by_row, latent, live, of_slot, (slot >= 0) & (of_slot < rows), rows)


@triton.jit
def load_tail(tail, row, tile_columns: tl.constexpr, tail_width: tl.constexpr, parts: tl.constexpr):
    """Load the parts of one row's `tail`, (tile_columns, tail_width); those beyond `parts` are copies, not used."""
    size: tl.constexpr = tile_columns * tail_width
    tail += row * parts * size
    offsets = tl.arange(0, tile_columns)[:, None] * tail_width + tl.arange(0, tail_width)[None, :]
    part0 = tl.load(tail + offsets)
    part1, part2 = part0, part0
    if parts > 1:
        part1 = tl.load(tail + size + offsets)
    if parts > 2:
        part2 = tl.load(tail + 2 * size + offsets)
    return part0, part1, part2


@triton.jit
def products(
    q0, q1, q2, t0, t1, t2, lead_query, lead, row, latent, live, total,
    tile_columns: tl.constexpr, lead_width: tl.constexpr, parts: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Return total + queries . tokens of one row, (tile_latents, tile_columns).

    q0 to q2 are the parts of a query laid out like `tail`, t0 to t2 those of `tail`. The rest of the query is
    `lead_query`, (N, lead_parts, lead_width), for `lead`, (R, lead_parts, tile_columns, lead_width).
    """
    size: tl.constexpr = tile_columns * lead_width
    lead += row * lead_parts * size
    index = tl.arange(0, tile_columns)
    for first in range(0, lead_width, LEAD_BLOCK):
        channel = first + tl.arange(0, LEAD_BLOCK)
        of_query = lead_query + latent[:, None] * (lead_parts * lead_width) + channel[None, :]
        of_token = lead + index[:, None] * lead_width + channel[None, :]
        l0 = tl.load(of_query, mask=live[:, None], other=0.0)
        k0 = tl.load(of_token)
        l1, l2, k1, k2 = l0, l0, k0, k0
        if lead_parts > 1:
            l1 = tl.load(of_query + lead_width, mask=live[:, None], other=0.0)
            k1 = tl.load(of_token + size)
        if lead_parts > 2:
            l2 = tl.load(of_query + 2 * lead_width, mask=live[:, None], other=0.0)
            k2 = tl.load(of_token + 2 * size)
        total = dot(l0, l1, l2, tl.trans(k0), tl.trans(k1), tl.trans(k2), total, lead_parts)
    return dot(q0, q1, q2, tl.trans(t0), tl.trans(t1), tl.trans(t2), total, parts)


@triton.jit
def weighted_sum(w0, w1, w2, t0, t1, t2, total, parts: tl.constexpr):
    """Return weights @ tokens + total.

    With two parts the weights are rounded to one bfloat16 number each, as in fused attention (arXiv 2205.14135); the
    tokens are not. With three, the sum over the tile starts at 0 and is added as a whole: tensor cores truncate.
    """
    if parts > 2:
        return total + dot(w0, w1, w2, t0, t1, t2, tl.zeros_like(total), parts)
    if parts > 1:
        total = _dot(w0, t1, total)
    return _dot(w0, t0, total)


@triton.jit
def weighted_lead_sum(
    w0, w1, w2, lead, row, chunk, total,
    tile_columns: tl.constexpr, lead_width: tl.constexpr, lead_chunk: tl.constexpr, lead_parts: tl.constexpr,
):  # fmt: skip
    """Return weights @ a chunk of the lead + total, (tile_latents, lead_chunk)."""
    size: tl.constexpr = tile_columns * lead_width
    channel = chunk * lead_chunk + tl.arange(0, lead_chunk)
    lead += row * lead_parts * size
    offsets = tl.arange(0, tile_columns)[:, None] * lead_width + channel[None, :]
    inside = (channel < lead_width)[None, :]
    l0 = tl.load(lead + offsets, mask=inside, other=0.0)
    l1, l2 = l0, l0
    if lead_parts > 1:
        l1 = tl.load(lead + size + offsets, mask=inside, other=0.0)
    if lead_parts > 2:
        l2 = tl.load(lead + 2 * size + offsets, mask=inside, other=0.0)
    return weighted_sum(w0, w1, w2, l0, l1, l2, total, lead_parts)
