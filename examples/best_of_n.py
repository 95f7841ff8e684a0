"""Best of n with the official `openai` client: sample n solutions and show the model's own score of each.

Start the service (`laser serve --model runs/quickstart`), then:

    python examples/best_of_n.py "a<b in {12,26,31}, a+b=43; a=?" --n 8

Each choice has `self_reward`, read in the same generation: near 1 the model calls its solution correct, near
0 wrong. It is None when the solution did not finish. The field `laser` asks for a vote over n solutions, or
for sampling until the vote is settled, as below.
"""

import argparse
import math
import os

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    options = parser.parse_args()

    # The client needs a key even when the service does not.
    client = OpenAI(base_url=options.url, api_key=os.environ.get("LASER_API_KEY", "none"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": options.problem}]

    completion = client.chat.completions.create(model=model, messages=messages, n=options.n)
    solutions = [(choice.self_reward, choice.message.content) for choice in completion.choices]
    solutions.sort(key=lambda solution: -math.inf if solution[0] is None else solution[0], reverse=True)
    for score, text in solutions:
        print("  none" if score is None else f"{score:6.3f}", text)

    adaptive = {"adaptive": {"confidence": 0.9, "max_samples": options.n}}
    voted = client.chat.completions.create(model=model, messages=messages, extra_body={"laser": adaptive})
    tally = voted.laser
    print(
        f"adaptive: {tally['answer']} after {tally['samples']} samples, {tally['tokens']} tokens; "
        f"votes {tally['votes']}"
    )


if __name__ == "__main__":
    main()
