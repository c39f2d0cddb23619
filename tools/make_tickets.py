"""Write sample_data/tickets.jsonl: support tickets, and what is in them.

    python tools/make_tickets.py

Each ticket is about one of five products, which its text may name or only describe. Who writes, the
order and the days are drawn from a seed, so that the file comes out the same each time.
"""

import json
import random
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "sample_data" / "tickets.jsonl"
PROBLEMS = {
    "phone": [
        "the screen of my phone stays black after the update, and it no longer rings",
        "nobody hears me when I make a call, although I hear them",
        "my SIM card is not found any more",
        "the phone gets hot in my pocket and its battery is empty by noon",
        "text messages arrive a day late",
        "it fell out of my pocket and the touch screen has a crack",
        "I cannot answer calls because the green button does not react",
        "the phone has no signal at home, where my old one had four bars",
    ],
    "laptop": [
        "the keyboard types every letter twice",
        "my laptop does not wake up when I open the lid",
        "the touchpad jumps across the screen while I write",
        "it shuts down in the middle of spreadsheets though the charger is plugged in",
        "the hinge of the lid broke after a week",
        "the laptop is so slow that the browser takes five minutes to open",
        "three keys came off when I cleaned the keyboard",
        "the hard disk clicks and Windows does not start",
    ],
    "printer": [
        "every page comes out with a black stripe",
        "paper gets stuck in the tray each time",
        "the printer says that the ink is empty, but the cartridge is new",
        "it prints the first page and then stops for ten minutes",
        "the printer is not found in our network",
        "colours are wrong: what should be blue comes out green",
        "the scanner on top makes all copies crooked",
        "toner comes off the paper when I touch it",
    ],
    "camera": [
        "all photos are blurred since I changed the lens",
        "the camera does not read its memory card",
        "the flash goes off even in bright sunlight",
        "the zoom ring is stuck at 50 mm",
        "there are grey spots in every picture of the sky",
        "the shutter clicks, but no picture is stored",
        "the camera turns off when I start to film",
        "the viewfinder shows everything upside down",
    ],
    "headphones": [
        "there is sound on the left ear only",
        "the headphones lose their Bluetooth connection every few minutes",
        "the noise cancelling hums louder than the train",
        "the ear cushions fell apart after two months",
        "music stutters as soon as I walk",
        "the headband is broken, so they slip off my head",
        "the case does not charge the earbuds any more",
        "the bass is gone and voices sound tinny",
    ],
}
OPENINGS = ["Hello,", "Good morning,", "Hi there,", "Dear team,", "To whom it may concern:"]
ENDINGS = [
    "I bought it {days} days ago, order {order}.",
    "My order was {order}, delivered {days} days ago.",
    "Order {order}. I have had it for {days} days.",
    "It came {days} days ago with order {order}, and I want my money back.",
    "Please send a new one for order {order}; this one is {days} days old.",
]


def tickets() -> list[dict[str, object]]:
    """All tickets, in an order that says nothing of their products."""
    draw = random.Random(24)
    made = [
        (product, problem, opening)
        for product, problems in PROBLEMS.items()
        for problem in problems
        for opening in OPENINGS
    ]
    draw.shuffle(made)
    found = []
    for number, (product, problem, opening) in enumerate(made, start=1):
        order, days = f"{draw.choice('ABC')}-{draw.randint(1000, 9999)}", draw.randint(2, 99)
        ending = draw.choice(ENDINGS).format(order=order, days=days)
        text = f"{opening} {problem}. {ending}"
        found.append({"id": number, "text": text, "product": product, "order": order, "days": days})
    return found


if __name__ == "__main__":
    lines = [json.dumps(ticket) + "\n" for ticket in tickets()]
    TARGET.write_text("".join(lines), encoding="utf-8")
