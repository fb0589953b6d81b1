#!/usr/bin/env bash
# Every figure of the READMEs: `learn` trains (an hour on two cores), `clock` wants an idle machine and SB3_PYTHON, the
# Python of an environment with Stable-Baselines3 (requirements.txt), `draw` makes the pictures.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

learn() {
    grid() { python benchmarks/grid.py "$@"; }
    five=(--seeds 1 2 3 4 5 --)
    grid cartpole_solved ppo_discrete.py --env-ids CartPole-v1 --seeds {1..10} -- --target-return 475 --eval-episodes 0
    grid cartpole ppo_discrete.py --env-ids CartPole-v1 --seeds {1..10} -- --eval-episodes 100
    grid acrobot ppo_discrete.py --env-ids Acrobot-v1 "${five[@]}" --total-timesteps 200000 --eval-episodes 100
    grid lunarlander_solved ppo_discrete.py --env-ids LunarLander-v3 "${five[@]}" --total-timesteps 300000 \
        --target-return 200 --eval-episodes 0
    grid lunarlander ppo_discrete.py --env-ids LunarLander-v3 "${five[@]}" --total-timesteps 300000 --eval-episodes 100
    grid pendulum ppo_continuous.py --env-ids Pendulum-v1 "${five[@]}" --eval-episodes 100
    grid lunarlandercontinuous ppo_continuous.py --env-ids LunarLanderContinuous-v3 "${five[@]}" \
        --total-timesteps 300000 --eval-episodes 100
    grid mountaincar ppo_continuous.py --env-ids MountainCarContinuous-v0 "${five[@]}" --eval-episodes 100
    grid mountaincar_entropy ppo_continuous.py --env-ids MountainCarContinuous-v0 "${five[@]}" --eval-episodes 100 \
        --ent-coef 0.5 --learning-rate 1e-3
    grid bipedalwalker ppo_continuous.py --env-ids BipedalWalker-v3 --seeds 1 2 3 -- --total-timesteps 1000000 \
        --learning-rate 3e-4 --num-minibatches 8 --hidden-size 64 --target-kl None --eval-episodes 100
    grid halfcheetah ppo_continuous.py --env-ids HalfCheetah-v5 --seeds 1 2 3 -- --total-timesteps 1000000 \
        --eval-episodes 100
    grid vector_cartpole ppo_vector.py --env-ids CartPole-v1 "${five[@]}" --target-return 475 --eval-episodes 0
    grid vector_lunarlander ppo_vector.py --env-ids LunarLander-v3 --seeds 1 2 3 -- --total-timesteps 500000 \
        --eval-episodes 100
    grid vector_bipedalwalker ppo_vector.py --env-ids BipedalWalker-v3 --seeds 1 2 3 --processes 2 --jobs 1 -- \
        --total-timesteps 2000000 --num-envs 2 --num-steps 2048 --num-minibatches 32 --update-epochs 10 \
        --learning-rate 3e-4 --ent-coef 0 --hidden-size 128 --norm-obs --eval-episodes 100
}

clock() {
    for name in solved speed speed_continuous speed_vector solved_vector torchrun torchrun_256; do
        python benchmarks/pairs.py "$name" --sb3-python "$SB3_PYTHON"
    done
    python benchmarks/profile_iteration.py CartPole-v1
    python benchmarks/scaling.py
}

draw() {
    python benchmarks/plot.py benchmarks/results/learning_curves.png cartpole lunarlander lunarlandercontinuous \
        vector_lunarlander
    python benchmarks/plot.py benchmarks/results/halfcheetah.png halfcheetah
}

"$@"
