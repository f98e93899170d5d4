#!/usr/bin/env bash
# All four stages one after the other, from records to a checkpoint. Stopped at any step, the same command goes on.
#   DATA=records OUT=runs/base PRESET=base LAUNCH='torchrun --standalone --nproc-per-node 8 --no-python' bash recipes/stages.sh
# SPLIT=split.json keeps to its training subjects. LAUNCH starts a command on all processes (empty: one process). Batches are whole batches: other numbers of GPUs give the same training.
set -euo pipefail
: "${DATA:?a folder of records, a manifest, or simulated:N}" "${OUT:=runs/base}" "${PRESET:=base}" "${LAUNCH:=}" "${PRECISION:=bf16}" "${OPTIONS=--workers 8}"
pretrain() { $LAUNCH brainharmonix pretrain "$@" --preset "$PRESET" --precision "$PRECISION"; }
scans=("$DATA" ${SPLIT:+--split "$SPLIT"})
parts=(--function "$OUT/function/checkpoint" --structure "$OUT/structure/checkpoint")

pretrain structure  "${scans[@]}" --out "$OUT/structure" ${MICRO:+--micro "$MICRO"} $OPTIONS
pretrain function   "${scans[@]}" --out "$OUT/function" ${MICRO:+--micro "$MICRO"} $OPTIONS
pretrain latents    "${scans[@]}" --out "$OUT/latents" "${parts[@]}"
pretrain harmonizer --latents "$OUT/latents" --out "$OUT/harmonizer" "${parts[@]}" ${MICRO:+--micro "$MICRO"} $OPTIONS
echo "checkpoint      $OUT/harmonizer/checkpoint"
