"""Which values the options of the commands may have."""

from dataclasses import asdict

from data import UserError

AT_LEAST_1 = set("""steps prompts n max_prompt max_response mini_batches micro_tokens
                    eval_problems eval_n keep tensor_parallel workers""".split())
AT_LEAST_0 = set("""warmup critic_warmup filter_rounds eval_every save_every seed limit top_k lr
                    critic_lr max_tokens weight_decay eps_low eps_high value_clip beta lam entropy_coef
                    guide_gamma tis_cap eval_temperature temperature critic_mini_batches step""".split())
ABOVE_0 = {"grad_clip", "verifier_seconds", "verifier_memory"}
FROM_0_TO_1 = {"gamma", "gae_lambda", "guide_threshold"}
SHARES = {"gpu_memory", "top_p"}


def check_ranges(args, greedy: bool = False) -> None:
    """Raises UserError if an option in `args` is out of its range, or would do nothing beside the others.

    `greedy`: temperature 0 is in its range.
    """
    for name, value in asdict(args).items():
        if value is None:
            continue
        if name in AT_LEAST_1:
            right, words = value >= 1, "1 or more"
        elif name in ABOVE_0 or (name == "temperature" and not greedy):
            right, words = value > 0, "above 0"
        elif name in AT_LEAST_0:
            right, words = value >= 0, "0 or more"  # not a number is in no range
        elif name in FROM_0_TO_1:
            right, words = 0 <= value <= 1, "from 0 to 1"
        elif name in SHARES:
            right, words = 0 < value <= 1, "above 0 and at most 1"
        else:
            continue
        if not right:
            raise UserError(f"--{name.replace('_', '-')} {value}: it has to be {words}")
    if hasattr(args, "mini_batches") and args.prompts % args.mini_batches:
        raise UserError(f"--prompts {args.prompts} does not divide into --mini-batches {args.mini_batches}")
    if hasattr(args, "norm_std") and args.n < 2:
        raise UserError("--n 1: GRPO compares the samples of a prompt with each other, use --n 2")
    if getattr(args, "guide_ratio", "") == "sequence" and args.tis_cap:
        raise UserError("--guide-ratio sequence is exact for whole responses, --tis-cap weighs single "
                        "tokens: leave one out")
    if 0 < getattr(args, "critic_warmup", 0) >= args.steps:
        raise UserError(f"--steps {args.steps}: the critic learns alone in the first {args.critic_warmup} "
                        "(--critic-warmup), so no step would train the policy: give more, or warm up shorter")
    check_effects(args)


def check_effects(args) -> None:
    """Raises UserError if an option that is not at its default is one that nothing reads."""
    why = {}
    if getattr(args, "reinforce", "w-reinforce") != "w-reinforce":
        why["lam"] = f"--reinforce {args.reinforce} has no lambda"
    if getattr(args, "guide_with", "hint") == "nothing":
        why["guide_ratio"] = why["guide_gamma"] = "--guide-with nothing has no hinted samples to weigh"
    elif getattr(args, "guide_ratio", "shaped") != "shaped":
        why["guide_gamma"] = f"--guide-ratio {args.guide_ratio} has no gamma"
    if getattr(args, "mini_batches", 2) == 1 and getattr(args, "guide_ratio", "") != "clip":
        one = "with --mini-batches 1 the ratio is 1 and nothing is clipped: give 2 or more"
        why["eps_low"] = why["eps_high"] = one
    for name, reason in why.items():
        if getattr(args, name) != type(args).__dataclass_fields__[name].default:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)} would do nothing: {reason}")
