"""Triton kernels for attention to a grid; grid_kernels.py launches them.

Arguments have the same names in all kernels. Sizes are B samples, N latents, R rows, W columns, A feature channels, T
tiles of columns, S pieces of rows. Arrays are contiguous; packed ones are in bfloat16, all others in fp32:

    query, feature_grad         (B, N, A)                 and the gradient of the sum of features
    lead_query, lead_grad       (B, N, lead_parts, lead_width)  packed, their parts for the lead
    row_scores, row_grads       (B, N, R)                 and the gradients of the sums by row
    column_scores, column_grads (B, N, W)                 and the gradients of the sums by column
    normaliser                  (B, N)                    log-sum-exp of the scores, to base e
    shift                       (B, N)                    subtracted from dP
    features, rstd              (B, R * W, A), (B, R * W)
    tail                        (B, T, R, parts, tile_columns, tail_width)       packed, see tokens.py
    lead                        (B, T, R, lead_parts, tile_columns, lead_width)  packed
    scale                       (B, T, R, tile_columns)   rstd, 1 beyond the grid
    own_sums, lead_sums         (B, S, T, N, tail_width), (B, S, T, N, lead_width)
    row_sums, column_sums       (B, T, N, R), (B, S, N, W)
    shifts                      (B, S, T, N)              subtracted from scores to base 2
    feature_sum                 (B, N, A)                 result
    total_by_row, total_by_column  (B, N, R), (B, N, W)   results
    mean_sums, rstd_sums        (B, R * W)                results

Numbers: latents N, rows R, columns W, channels A, lead_channels (features in the lead), tiles T, pieces S,
rows_per_piece. Compiled in: tile_latents, tile_columns, tail_width, lead_width, lead_chunk (channels of the lead that
a program sums), parts and lead_parts (bfloat16 numbers that make up a number), places (S * T, rounded up to a power of
2), weighted (whether to weight tiles by their shifts).
"""
