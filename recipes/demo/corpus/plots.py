"""Plots of the short stories: stages, each with sentences to choose from."""

PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        (
            "One day the old {thing} was gone.",
            "Then {pos} {thing} disappeared.",
            "One morning {n} could not find the {thing}.",
            "But on the day of the feast, the {thing} was missing.",
        ),
        (
            "{N} looked under the bed, behind the stove and on the roof.",
            "{N} asked {o}, who only shook a head.",
            "{She} searched for {k} days and found nothing but dust.",
            '"Think of the last time you held it," said {o}.',
        ),
        (
            "Small footprints led to the well.",
            "At last {n} heard a faint sound from the barn.",
            "Then {o} pointed at a nest in the tallest tree.",
            "A trail of {color} paint led down to the water.",
        ),
        (
            "There it lay, wet but whole.",
            "A crow had taken it, and gave it back for a piece of bread.",
            "It had been in {pos} own pocket all the time.",
            "A child was playing with it, and {n} let {o} explain.",
        ),
    ),
    "found": (
        (
            "On the way home, {n} found {ac_thing}.",
            "One day, {ac_thing} lay in front of the door.",
            "While digging in the garden, {n} hit something hard: {a_thing}.",
            "Behind a loose brick {n} discovered {ac_thing}.",
        ),
        (
            "Nobody knew whose it was.",
            "There was a name on it, but the rain had washed it away.",
            '"It looks very old," said {o}.',
            "It was warm, as if somebody had just put it down.",
        ),
        (
            "{N} went from house to house and asked.",
            "{N} put up a note at the market.",
            "For {k} days {n} kept it safe and waited.",
            "{N} and {o} carried it to the town hall.",
        ),
        (
            "Then an old sailor came and began to cry with joy.",
            "At last a little girl said softly that it was hers.",
            "In the end the owner was {o}, who had been too shy to say so.",
            "Nobody came, so {n} gave it to the school.",
        ),
    ),
    "storm": (
        (
            "One night a storm came in from the west.",
            "Without warning, the wind tore at the windows.",
            "Then the river began to rise.",
            "In the middle of the night, lightning struck the old oak.",
        ),
        (
            "The lights went out, and {o} was still outside.",
            "Somewhere in the dark, {o} was calling for help.",
            "The bridge was gone, and {o} stood on the other side.",
            "All the animals had run away except for one small goat.",
        ),
        (
            "{N} took the {thing} and stepped into the rain.",
            "{N} was afraid, but {she} opened the door.",
            "With the {thing} in one hand, {n} climbed down to the water.",
            "{N} tied a rope around the {thing} and threw it across.",
        ),
        (
            "Step by step they found the way back.",
            "An hour later both of them sat by the fire.",
            "When the sun rose, everyone was safe.",
            '"You came," whispered {o}. "Of course," said {n}.',
        ),
    ),
    "friend": (
        (
            "One day somebody new moved in next door: {o}.",
            "That summer {o} came to stay.",
            "Then {n} met {o}, who never said a word.",
            "At the fair, {n} bumped into {o} and dropped the {thing}.",
        ),
        (
            "At first they did not like each other.",
            "They had nothing in common, or so it seemed.",
            "{O_} wanted to be alone, and so did {n}.",
            "They argued about everything, even about the color of the sky.",
        ),
        (
            "But one afternoon both of them reached for the same {thing}.",
            "Then {n} saw that {o} was trying to repair {a_thing}.",
            "One rainy day they had to share {a_thing}.",
            "Then {o} showed {n} {ac_thing} that nobody else had ever seen.",
        ),
        (
            "They talked until it was dark.",
            "They laughed so hard that the windows shook.",
            "By the evening they were planning a trip around the world.",
            "After that, you never saw one without the other.",
        ),
    ),
    "contest": (
        (
            "Every year there was a great contest, and this time {n} wanted to win.",
            "The prize of the race was {ac_thing}.",
            "{N} had trained for {k} weeks for the big day.",
            '"You will never win," said {o}, and {n} decided to try.',
        ),
        (
            "At the start, {n} was the very last.",
            "The first part was easy, the second was steep.",
            "Halfway through, {pos} left shoe broke.",
            "Everyone else was taller, faster and louder.",
        ),
        (
            "Then {o} fell and could not get up.",
            "Near the end, {n} saw that {o} had lost the way.",
            "Just before the finish, {n} heard somebody calling.",
            "Only {o} was still ahead.",
        ),
        (
            "{N} stopped to help, and they crossed the line together.",
            "{N} turned back at once. Winning could wait.",
            "They came in last, and the crowd cheered for them most of all.",
            "With the last bit of strength, {n} won by the length of a nose.",
        ),
    ),
    "journey": (
        (
            "One day {n} packed a bag and left.",
            "All {pos} life {n} had wanted to see the mountains.",
            "A letter came: {o} was ill and far away.",
            "{N} had {a_thing} to deliver, and the road was long.",
        ),
        (
            "On the first day, {n} lost the map.",
            "{She} crossed {k} rivers and slept under the stars.",
            "The road went up and up, and the bread was soon gone.",
            "At a crossing with no sign, {n} simply followed a bird.",
        ),
        (
            "There {n} met {o}, who was going the same way.",
            "In an empty inn, {ac_thing} stood on the table.",
            "A stranger gave {him} {a_thing} and walked away without a word.",
            "On the last hill, the wind almost took the {thing}.",
        ),
        (
            "From the top {n} could see the whole world, small and bright.",
            "At the end of the road there was a light in a window.",
            "When {n} arrived, {o} was already smiling.",
            "It was not the place {n} had imagined. It was better.",
        ),
    ),
    "sound": (
        (
            "Every night at midnight there was a strange sound.",
            "One evening {n} heard music from an empty house.",
            "Something was scratching behind the wall.",
            "A bell was ringing, though the {place} had no bell.",
        ),
        (
            '"It is only the wind," said {o}. {N} was not so sure.',
            "{N} took {a_thing} and tiptoed down the stairs.",
            "{N} counted to {k} and opened the door.",
            "Everyone was afraid, so {n} went alone.",
        ),
        (
            "In the corner sat a tiny {color} bird.",
            "There stood {o} with {ac_thing} and a red face.",
            "Behind the curtain {n} found {ac_thing} that played by itself.",
            "Two bright eyes looked back at {him}.",
        ),
        (
            '"I did not want to wake anyone," said a small voice.',
            "It was only looking for a warm place to sleep.",
            "{N} laughed, and the fear was gone.",
            "The next night they listened to it together.",
        ),
    ),
    "mistake": (
        (
            "One day {n} broke the {thing} by accident.",
            "{N} had borrowed the {thing} from {o}, and now it was in pieces.",
            "By mistake, {n} painted the {thing} {color}.",
            "{N} forgot to close the gate, and all the sheep ran off.",
        ),
        (
            "{N} hid in the attic and did not come down for dinner.",
            "For {k} days {n} said nothing.",
            "{N} tried to repair it with glue and string, and made it worse.",
            "Somebody else was blamed, and that was the worst part.",
        ),
        (
            'In the end {n} went to {o} and said: "It was me."',
            "Then {n} took a deep breath and told the truth.",
            "{N} wrote a note and pushed it under the door.",
            "{N} could not sleep, so {she} got up and knocked.",
        ),
        (
            '{O_} only smiled. "I broke the first one myself."',
            "They repaired it together, and it was stronger than before.",
            '"Thank you for telling me," said {o}.',
            "It turned out that everyone liked it much better this way.",
        ),
    ),
    "gift": (
        (
            "{O_}'s birthday was near, and {n} had no money for a gift.",
            "An old friend, {o}, sent {n} {ac_thing} in a plain box.",
            "{N} wanted to make something for {o}.",
            "On the shortest day of the year, {n} and {o} found {a_thing} on the doorstep.",
        ),
        (
            "{She} thought about it for {k} days.",
            "There was a card, but it was empty.",
            "{N} collected wood, wire and {color} paper.",
            "Everyone had an idea, and none of them was good.",
        ),
        (
            "Then {n} remembered what {o} had said about the sea.",
            "At night {n} worked by candlelight until it was done.",
            "{N} turned it around and saw two words: for later.",
            "In the end {n} gave the thing {she} loved most.",
        ),
        (
            "{O_} was silent for a long moment, then began to dance.",
            "It was a bit crooked, and it was perfect.",
            "Nobody had ever made {o} so happy.",
            "The best gifts, {n} learned, take time.",
        ),
    ),
    "door": (
        (
            "Behind the shelf there was a small {color} door.",
            "{N} had a key that fitted no lock.",
            "In the cellar {n} found a stair that led down and down.",
            "One day the wall of the shed simply opened.",
        ),
        (
            "{N} needed the {thing} to open it.",
            "{O_} held the lamp while {n} pushed.",
            "It took {k} tries and a lot of oil.",
            '"Do not go in," said {o}, and went in first.',
        ),
        (
            "On the other side it was summer.",
            "Behind it lay a room full of clocks, and each showed another time.",
            "There was a garden in which the trees spoke in whispers.",
            "They saw the same {place}, but everything was upside down.",
        ),
        (
            "They stayed for an hour. Outside, only a minute had passed.",
            "{N} took nothing but a single {color} leaf.",
            "When they came back, the door was gone.",
            "They promised each other to tell no one.",
        ),
    ),
    "repair": (
        (
            "The big clock of the {place} had stopped.",
            "The only boat had a hole, and winter was near.",
            "Nobody could make the old {thing} work again.",
            "The mill stood still, and there was no flour left.",
        ),
        (
            "{N} offered to help, and people laughed.",
            '"You are too small for that," said {o}.',
            "Experts had come from {k} towns and had left again.",
            "{N} looked at it from every side and said nothing.",
        ),
        (
            "{N} took it apart, piece by piece.",
            "With {a_thing} and a bit of wire, {n} began to work.",
            "{O_} passed the tools, and {n} did not even stop to eat.",
            "In the heart of it {n} found a tiny {color} button.",
        ),
        (
            "At noon it moved, and everyone held their breath.",
            "It made a noise like an old dog, and then it ran.",
            "By evening it worked better than ever.",
            '"How did you do that?" asked {o}. "I listened," said {n}.',
        ),
    ),
    "market": (
        (
            "On market day {n} wanted to sell the {thing}.",
            "{N} had baked {k} cakes for the market.",
            "There was a stall at the market that had never been there before.",
            "{N} went to the market with one coin and a long list.",
        ),
        (
            "Nobody bought anything until {o} came by.",
            "A man in {a_color} coat offered a trade.",
            '"What do you want for it?" asked {o}.',
            "{N} called out until {pos} voice was gone.",
        ),
        (
            "They traded a song for {ac_thing}.",
            "{N} gave {o} the biggest piece for nothing.",
            "In return {n} got {a_thing} that had belonged to a king.",
            "Soon there was a long line of people.",
        ),
        (
            "At the end of the day the basket was empty and the pockets were full.",
            "{N} came home with less money and more friends.",
            "It was a strange trade, but a good one.",
            "Next week, {n} decided, they would do it together.",
        ),
    ),
}
