#!/usr/bin/env bash
# Full, random, pruned and, where labels were planted wrong, an oracle: several comparisons side by side on one GPU, from
# the root of a checkout:
#
#   bash tests/gpu/compare.sh DATA SECONDS SEEDS COMPARISON:JOBS...
#
# DATA holds bccd/ and deeppcb/. COMPARISON is bccd, bccd-noise20, deeppcb or deeppcb-noise20, JOBS how many of its cells
# run at once. Stops after SECONDS; called again, with as many seeds or more, it goes on where it was. What is finished
# lies in runs/gpu/compared/. DEVICE=cpu tries the script itself, MORE="epochs=3 imgsz=32" makes that short.
set -u
data=$(realpath "$1") seconds=$2 seeds=$3
shift 3

one() { # COMPARISON JOBS
  local noise=(--kind shifted swapped missing spurious shuffled --share 0.04 --seed 0)
  local set=$1 jobs=$2 base=${1%-noise20} listed=() shares=(0.3 0.5) from=$data/$1
  if [[ $set != "$base" ]]; then
    from=runs/gpu/$set
    [ -f "$from/data.yaml" ] || python3 -m yolo_adapruner.study.defects --data "$data/$base/data.yaml" "${noise[@]}" --out "$from"
    awk -F, -v root="$PWD/$from/" '$2 == "clean" { print root $1 }' "$from/truth.csv" >"$from.txt"
    listed=(--kept "$from.txt") shares=(0.2 0.5)
    [[ $base == bccd ]] && shares=(0.195 0.5) # 40 of 205
  fi
  # shellcheck disable=SC2086
  exec python3 -m yolo_adapruner compare "docs/results/$base-320.yaml" --data "$from/data.yaml" --device "${DEVICE:-0}" \
    --prune "${shares[@]}" "${listed[@]}" --seeds "$seeds" --jobs "$jobs" --budget updates --name "$set" \
    project=runs/gpu/compared ${MORE:-}
}

mkdir -p runs/gpu
export -f one
export data seeds
groups=()
for each in "$@"; do
  setsid bash -uc 'one "$@"' compare "${each%:*}" "${each#*:}" >>"runs/gpu/${each%:*}.log" 2>&1 &
  groups+=($!)
done
end=$((SECONDS + seconds))
while [ -n "$(jobs -r)" ] && [ "$SECONDS" -lt "$end" ]; do sleep 1; done
for group in "${groups[@]}"; do kill -- "-$group" 2>/dev/null; done
wait
for each in "$@"; do
  set=${each%:*}
  cells=$(find "runs/gpu/compared/$set/cells" -name cell.json 2>/dev/null | wc -l)
  echo "$set: $cells cells finished$([ -f "runs/gpu/compared/$set/compare.json" ] && echo ', comparison written')"
done
