"""The facts that the shipped tasks are built from, with the templates that ask for them."""

from __future__ import annotations

from typing import NamedTuple


class Relation(NamedTuple):
    """Facts of one kind and the ways of asking for them; ``{}`` stands for the subject."""

    templates: tuple[str, ...]
    paraphrases: tuple[str, ...]
    facts: dict[str, str]


def _pairs(text: str) -> dict[str, str]:
    return dict(item.split(":") for item in text.split())


SYMBOLS = Relation(
    (
        "The chemical symbol for {} is",
        "On the periodic table, the symbol for {} is",
        "The element {} has the chemical symbol",
        "The atomic symbol of {} is",
    ),
    (
        "In the periodic table, {} is written as",
        "The periodic table lists {} under the symbol",
        "In chemistry, {} is abbreviated as",
    ),
    _pairs(
        "hydrogen:H helium:He lithium:Li beryllium:Be boron:B carbon:C nitrogen:N oxygen:O "
        "fluorine:F neon:Ne sodium:Na magnesium:Mg aluminum:Al silicon:Si phosphorus:P sulfur:S "
        "chlorine:Cl argon:Ar potassium:K calcium:Ca scandium:Sc titanium:Ti vanadium:V "
        "chromium:Cr manganese:Mn iron:Fe cobalt:Co nickel:Ni copper:Cu zinc:Zn gallium:Ga "
        "germanium:Ge arsenic:As selenium:Se bromine:Br krypton:Kr strontium:Sr yttrium:Y "
        "molybdenum:Mo silver:Ag indium:In tin:Sn tellurium:Te iodine:I barium:Ba tungsten:W "
        "platinum:Pt gold:Au mercury:Hg lead:Pb bismuth:Bi uranium:U radium:Ra plutonium:Pu "
        "thorium:Th"
    ),
)

CAPITALS = Relation(
    (
        "The capital of {} is",
        "The capital city of {} is",
        "The government of {} sits in its capital,",
    ),
    ("The seat of government in {} is the city of",),
    _pairs(
        "France:Paris Italy:Rome Egypt:Cairo Japan:Tokyo Germany:Berlin Spain:Madrid "
        "Portugal:Lisbon Austria:Vienna Greece:Athens Norway:Oslo Sweden:Stockholm "
        "Finland:Helsinki Denmark:Copenhagen Poland:Warsaw Hungary:Budapest Ireland:Dublin "
        "England:London Russia:Moscow Ukraine:Kiev China:Beijing India:Delhi Indonesia:Jakarta "
        "Thailand:Bangkok Iran:Tehran Iraq:Baghdad Syria:Damascus Israel:Jerusalem "
        "Kenya:Nairobi Peru:Lima Chile:Santiago Cuba:Havana Canada:Ottawa Afghanistan:Kabul "
        "Tunisia:Tunis Belgium:Brussels Netherlands:Amsterdam Bulgaria:Sofia Switzerland:Bern "
        "Australia:Canberra Argentina:Buenos Philippines:Manila Mexico:Mexico Singapore:Singapore"
    ),
)

LANGUAGES = Relation(
    (
        "The official language of {} is",
        "The language spoken in {} is",
        "In {}, most people speak",
    ),
    ("People in {} speak", "Newspapers in {} are printed in"),
    _pairs(
        "France:French Germany:German Spain:Spanish Portugal:Portuguese Italy:Italian "
        "Greece:Greek Russia:Russian China:Chinese Japan:Japanese Korea:Korean Thailand:Thai "
        "Vietnam:Vietnamese Egypt:Arabic Israel:Hebrew Turkey:Turkish Iran:Persian India:Hindi "
        "Poland:Polish Hungary:Hungarian Sweden:Swedish Norway:Norwegian Denmark:Danish "
        "Finland:Finnish Netherlands:Dutch Romania:Romanian Bulgaria:Bulgarian "
        "Ukraine:Ukrainian Indonesia:Indonesian Cambodia:Khmer Mongolia:Mongolian "
        "Albania:Albanian Serbia:Serbian England:English Bangladesh:Bengali Pakistan:Urdu "
        "Iceland:Icelandic Croatia:Croatian Brazil:Portuguese Mexico:Spanish Austria:German"
    ),
)

ANTONYMS = Relation(
    ("The opposite of {} is",),
    (),
    _pairs(
        "hot:cold big:small up:down left:right day:night good:bad happy:sad fast:slow old:young "
        "rich:poor hard:soft light:dark high:low long:short wet:dry full:empty open:closed "
        "early:late true:false black:white war:peace love:hate strong:weak thick:thin "
        "clean:dirty loud:quiet near:far inside:outside win:lose buy:sell push:pull "
        "in:out first:last deep:shallow wide:narrow male:female life:death success:failure "
        "heavy:light cheap:expensive smooth:rough simple:complex"
    ),
)

# The same kinds of facts for Gemma 3 270M, with templates under which the answer is its most
# probable next token. Left out are names of more words, and what is disputed or not quite true
# under some template (a government that sits elsewhere, a language that few people speak).
GEMMA_SYMBOLS = Relation(
    (
        "The chemical symbol for {} is",
        "The element {} has the chemical symbol",
        "The atomic symbol of {} is",
        "In chemical formulas, {} is represented by the symbol",
    ),
    (
        "In chemistry, {} is abbreviated as",
        "The periodic table lists {} under the symbol",
        "The chemical element {} has the symbol",
    ),
    SYMBOLS.facts
    | _pairs(
        "rubidium:Rb zirconium:Zr niobium:Nb ruthenium:Ru rhodium:Rh palladium:Pd cadmium:Cd "
        "antimony:Sb xenon:Xe cesium:Cs cerium:Ce neodymium:Nd europium:Eu tantalum:Ta"
    ),
)

GEMMA_CAPITALS = Relation(
    (
        "The government of {} sits in its capital,",
        "{} is a country whose capital is",
        "In {}, the capital city is called",
        "Ambassadors to {} live in its capital,",
    ),
    (
        "The seat of government in {} is the city of",
        "The national government of {} is based in the city of",
        "The capital city of {} is called",
    ),
    _pairs(
        "France:Paris Italy:Rome Japan:Tokyo Germany:Berlin Spain:Madrid Portugal:Lisbon "
        "Austria:Vienna Greece:Athens Norway:Oslo Sweden:Stockholm Finland:Helsinki "
        "Denmark:Copenhagen Poland:Warsaw Hungary:Budapest Ireland:Dublin Egypt:Cairo "
        "Russia:Moscow China:Beijing Indonesia:Jakarta Thailand:Bangkok Iran:Tehran Iraq:Baghdad "
        "Lebanon:Beirut Jordan:Amman Kenya:Nairobi Peru:Lima Chile:Santiago Cuba:Havana "
        "Canada:Ottawa Belgium:Brussels Ukraine:Kyiv Romania:Bucharest Bulgaria:Sofia "
        "Serbia:Belgrade Croatia:Zagreb Slovakia:Bratislava Slovenia:Ljubljana Iceland:Reykjavik "
        "Latvia:Riga Lithuania:Vilnius Estonia:Tallinn Belarus:Minsk Armenia:Yerevan "
        "Azerbaijan:Baku Afghanistan:Kabul Pakistan:Islamabad Nepal:Kathmandu Bangladesh:Dhaka "
        "Ghana:Accra Nigeria:Abuja Uganda:Kampala Rwanda:Kigali Zimbabwe:Harare Tunisia:Tunis "
        "Morocco:Rabat Qatar:Doha Oman:Muscat Jamaica:Kingston Malta:Valletta Venezuela:Caracas "
        "Ecuador:Quito Uruguay:Montevideo"
    ),
)

GEMMA_LANGUAGES = Relation(
    (
        "The official language of {} is",
        "The main language of {} is",
        "The language most widely spoken in {} is",
        "In {}, the official language is",
    ),
    (
        "The most common language in {} is",
        "Laws in {} are written in the official language,",
        "Most people in {} speak the language called",
    ),
    _pairs(
        "France:French Germany:German Spain:Spanish Portugal:Portuguese Italy:Italian "
        "Greece:Greek Russia:Russian Japan:Japanese Korea:Korean Thailand:Thai "
        "Vietnam:Vietnamese Egypt:Arabic Israel:Hebrew Turkey:Turkish Iran:Persian "
        "Poland:Polish Hungary:Hungarian Sweden:Swedish Norway:Norwegian Denmark:Danish "
        "Finland:Finnish Netherlands:Dutch Romania:Romanian Bulgaria:Bulgarian "
        "Ukraine:Ukrainian Cambodia:Khmer Mongolia:Mongolian Albania:Albanian Serbia:Serbian "
        "England:English Bangladesh:Bengali Iceland:Icelandic Croatia:Croatian Brazil:Portuguese "
        "Mexico:Spanish Austria:German Argentina:Spanish Estonia:Estonian Latvia:Latvian "
        "Lithuania:Lithuanian Slovenia:Slovenian Slovakia:Slovak Czechia:Czech Laos:Lao "
        "Nepal:Nepali Armenia:Armenian Colombia:Spanish Cuba:Spanish Venezuela:Spanish "
        "Iraq:Arabic Syria:Arabic Jordan:Arabic Macedonia:Macedonian Azerbaijan:Azerbaijani "
        "Australia:English"
    ),
)

# Plain text: ordinary English, written for this project, for the retain gradient and geometry.
TEXT = (
    "The river was quiet in the morning, and a thin mist lay over the fields. A boat moved slowly "
    "towards the bridge, and two children waved at it from the bank.",
    "To bake a simple loaf of bread, mix the flour with water, salt and yeast, knead the dough for "
    "ten minutes, and let it rest in a warm place until it has doubled.",
    "She opened the letter with care. It had been sent from the other side of the country, and "
    "the paper still smelled of the garden where it had been written.",
    "A computer program is a list of instructions. The machine follows them one after another, "
    "and it does exactly what they say, which is not always what their author meant.",
    "In the winter the days are short and the nights are long, so the farmers mend their tools, "
    "look after the animals, and plan what they will plant in the spring.",
    "The team lost the first two games of the season, but after the new coach arrived they "
    "trained harder, passed the ball more often, and won the next five.",
    "When you multiply two negative numbers the result is positive. Many students find this "
    "strange at first, so the teacher draws a number line on the board.",
    "The museum is open every day except Monday. Tickets can be bought at the entrance, and "
    "children under the age of twelve do not have to pay.",
    "He had walked along that street a thousand times, yet he had never noticed the small blue "
    "door between the bakery and the shop that sold old books.",
    "Regular exercise helps people to sleep better, to keep a healthy weight and to feel less "
    "worried. Even a walk of twenty minutes a day makes a difference.",
    "The committee met on Thursday to discuss the plan. Most of the members agreed that the "
    "road should be repaired before the summer, when the traffic is heaviest.",
    "Bees visit flowers to collect nectar. While they do so they carry pollen from one plant to "
    "another, and without them many fruits and vegetables could not grow.",
)
