"""The facts that the shipped tasks are built from, with the templates that ask for them.

Left out is what is disputed, has changed lately, or has two right answers: Israel's capital, the
languages of India or Belgium, the continent of Turkey.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import NamedTuple

N_WRONG = 3


class Relation(NamedTuple):
    """Facts of one kind and the ways of asking for them; ``{}`` stands for the subject.

    Attributes:
        more: further forms of asking, in which what is known of a fact under ``templates`` is asked
            where the subject knows it so, too.
        wrong: of some facts, by name, the wrong answers that are offered; of the others these are
            drawn from the other answers.
    """

    templates: tuple[str, ...]
    paraphrases: tuple[str, ...]
    facts: dict[str, str]
    wrong: Mapping[str, tuple[str, ...]] = {}
    more: tuple[str, ...] = ()


def _pairs(text: str) -> dict[str, str]:
    """Facts as ``name:answer``, with ``_`` for a space."""
    return dict(item.replace("_", " ").split(":") for item in text.split())


def _each(text: str, answer: str) -> dict[str, str]:
    """Names that share an answer."""
    return {name.replace("_", " "): answer for name in text.split()}


def _wrong(
    facts: Mapping[str, str], pool: Collection[str], right: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """For each fact wrong answers out of ``pool``: none that is its own, or ``right`` as well."""
    rng = random.Random(0)
    found = {}
    for name, answer in facts.items():
        also = (right or {}).get(name, "").split()
        rest = [word for word in pool if word != answer and word not in also]
        found[name] = tuple(rng.sample(rest, N_WRONG))
    return found


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
        "germanium:Ge arsenic:As selenium:Se bromine:Br krypton:Kr rubidium:Rb strontium:Sr "
        "yttrium:Y zirconium:Zr niobium:Nb molybdenum:Mo technetium:Tc ruthenium:Ru rhodium:Rh "
        "palladium:Pd silver:Ag cadmium:Cd indium:In tin:Sn antimony:Sb tellurium:Te iodine:I "
        "xenon:Xe cesium:Cs barium:Ba lanthanum:La cerium:Ce praseodymium:Pr neodymium:Nd "
        "promethium:Pm samarium:Sm europium:Eu gadolinium:Gd terbium:Tb dysprosium:Dy holmium:Ho "
        "erbium:Er thulium:Tm ytterbium:Yb lutetium:Lu hafnium:Hf tantalum:Ta tungsten:W "
        "rhenium:Re osmium:Os iridium:Ir platinum:Pt gold:Au mercury:Hg thallium:Tl lead:Pb "
        "bismuth:Bi polonium:Po astatine:At radon:Rn francium:Fr radium:Ra actinium:Ac thorium:Th "
        "protactinium:Pa uranium:U neptunium:Np plutonium:Pu americium:Am curium:Cm berkelium:Bk "
        "californium:Cf einsteinium:Es fermium:Fm nobelium:No lawrencium:Lr"
    ),
    more=(
        "The element {} is represented by the symbol",
        "In a chemical formula, {} appears as",
        "The short form for the element {} is",
        "In formulas, chemists write {} as",
        "The element {} is denoted by",
        "The standard symbol of {} is",
        "Students learn that the symbol for {} is",
        "Scientists use for {} the symbol",
    ),
)

# What else is known of the elements: what they are, how they are met with, what they are used in.
_GASES = "hydrogen helium nitrogen oxygen fluorine neon chlorine argon krypton xenon radon"
_METALS = (
    "lithium beryllium sodium magnesium aluminum potassium calcium scandium titanium vanadium "
    "chromium manganese iron cobalt nickel copper zinc gallium rubidium strontium yttrium "
    "zirconium niobium molybdenum ruthenium rhodium palladium silver cadmium indium tin barium "
    "lanthanum cerium praseodymium neodymium samarium europium gadolinium terbium dysprosium "
    "holmium erbium thulium ytterbium lutetium hafnium tantalum tungsten rhenium osmium iridium "
    "platinum gold thallium lead bismuth radium actinium thorium uranium plutonium americium"
)
_KINDS = _each(_GASES, "gas") | _each(_METALS + " mercury", "metal")
KINDS = Relation(
    ("The element {} is a", "Chemists classify {} as a"),
    (),
    _KINDS,
    _wrong(_KINDS, ("gas", "metal", "sugar", "acid")),
)

_STATES = (
    _each(_GASES, "gas")
    | _each("bromine mercury", "liquid")
    | _each(_METALS + " boron carbon silicon phosphorus sulfur germanium arsenic selenium", "solid")
    | _each("tellurium iodine", "solid")
)
STATES = Relation(
    ("At 20 degrees Celsius, the element {} is a", "Under normal conditions, pure {} is a"),
    (),
    _STATES,
    _wrong(_STATES, ("gas", "liquid", "solid", "plasma")),
)

_USES = _pairs(
    "hydrogen:fuel helium:balloons lithium:batteries boron:glass carbon:pencils "
    "nitrogen:fertilizer oxygen:welding fluorine:toothpaste neon:signs sodium:salt "
    "magnesium:fireworks aluminum:cans silicon:chips phosphorus:matches sulfur:gunpowder "
    "chlorine:bleach argon:welding potassium:fertilizer calcium:cement titanium:implants "
    "vanadium:steel chromium:steel manganese:steel iron:steel cobalt:batteries nickel:coins "
    "copper:wires zinc:batteries gallium:chips germanium:chips arsenic:poison krypton:bulbs "
    "strontium:fireworks molybdenum:steel silver:jewelry cadmium:batteries tin:cans "
    "iodine:medicine barium:fireworks tungsten:bulbs platinum:jewelry gold:jewelry "
    "lead:batteries thorium:reactors uranium:reactors plutonium:bombs "
    "radium:medicine americium:detectors"
)
_USED_TOO = {  # what an element is used in besides, of all the uses above
    "hydrogen": "bombs welding balloons fertilizer bleach",
    "helium": "welding reactors chips medicine",
    "lithium": "medicine bombs glass reactors fireworks implants",
    "boron": "reactors bleach fertilizer steel medicine detectors chips bombs fireworks",
    "carbon": "steel fuel batteries gunpowder jewelry implants reactors medicine bulbs fireworks",
    "nitrogen": "gunpowder bulbs bombs steel medicine chips",
    "oxygen": "fuel steel bleach medicine glass",
    "fluorine": "reactors glass medicine chips",
    "neon": "bulbs",
    "sodium": "bleach glass reactors batteries toothpaste fertilizer bulbs",
    "magnesium": "medicine cans cement fertilizer implants salt bulbs batteries bombs",
    "aluminum": "wires fireworks cement coins medicine chips bombs steel",
    "silicon": "glass steel cement implants detectors batteries",
    "phosphorus": "fertilizer bombs toothpaste poison steel bulbs chips fireworks",
    "sulfur": "matches fertilizer medicine fireworks batteries cement steel",
    "chlorine": "salt medicine poison fireworks",
    "argon": "bulbs steel chips signs",
    "potassium": "gunpowder salt matches glass medicine fireworks toothpaste",
    "calcium": "toothpaste steel medicine fertilizer bleach glass batteries fireworks",
    "titanium": "jewelry steel fireworks bombs",
    "vanadium": "batteries",
    "chromium": "implants cement glass wires jewelry",
    "manganese": "batteries fertilizer glass cans steel coins",
    "iron": "wires fireworks cement medicine batteries coins magnets cans welding signs",
    "cobalt": "steel implants glass medicine jewelry bombs",
    "nickel": "batteries steel wires jewelry",
    "copper": "coins jewelry fireworks bombs chips medicine poison batteries",
    "zinc": "coins medicine fireworks wires toothpaste fertilizer cans steel",
    "gallium": "medicine bulbs detectors bombs",
    "germanium": "glass detectors",
    "arsenic": "chips glass medicine fireworks batteries",
    "krypton": "signs",
    "strontium": "toothpaste medicine glass batteries",
    "molybdenum": "wires bulbs fertilizer reactors medicine",
    "silver": "coins batteries wires medicine chips bombs bulbs",
    "cadmium": "reactors jewelry poison wires",
    "tin": "coins toothpaste glass wires batteries jewelry steel",
    "iodine": "salt detectors bulbs",
    "barium": "glass medicine poison cement bulbs",
    "tungsten": "wires steel jewelry bombs reactors chips",
    "platinum": "medicine implants glass coins fuel wires chips",
    "gold": "coins chips wires medicine glass implants",
    "lead": "glass poison jewelry reactors detectors cans bombs pencils",
    "thorium": "fuel welding bulbs glass",
    "uranium": "bombs fuel glass",
    "plutonium": "reactors batteries fuel",
    "radium": "bombs signs toothpaste",
    "americium": "batteries",
}
USES = Relation(
    (
        "A well-known use of {} is in",
        "Industry uses {} for",
        "An important application of {} is in",
    ),
    (),
    _USES,
    _wrong(_USES, sorted(set(_USES.values())), _USED_TOO),
)

# Countries (and the nations of the United Kingdom), then states, provinces and regions.
_COUNTRY_CAPITALS = _pairs(
    "France:Paris Italy:Rome Egypt:Cairo Japan:Tokyo Germany:Berlin Spain:Madrid "
    "Portugal:Lisbon Austria:Vienna Greece:Athens Norway:Oslo Sweden:Stockholm "
    "Finland:Helsinki Denmark:Copenhagen Poland:Warsaw Hungary:Budapest Ireland:Dublin "
    "Russia:Moscow China:Beijing Indonesia:Jakarta Thailand:Bangkok Iran:Tehran Iraq:Baghdad "
    "Syria:Damascus Kenya:Nairobi Peru:Lima Cuba:Havana Canada:Ottawa "
    "Afghanistan:Kabul Tunisia:Tunis Belgium:Brussels Bulgaria:Sofia Switzerland:Bern "
    "Australia:Canberra Ukraine:Kyiv Romania:Bucharest Serbia:Belgrade Croatia:Zagreb "
    "Slovakia:Bratislava Slovenia:Ljubljana Iceland:Reykjavik Latvia:Riga Lithuania:Vilnius "
    "Estonia:Tallinn Belarus:Minsk Armenia:Yerevan Azerbaijan:Baku Pakistan:Islamabad "
    "Nepal:Kathmandu Bangladesh:Dhaka Ghana:Accra Nigeria:Abuja Uganda:Kampala Rwanda:Kigali "
    "Zimbabwe:Harare Morocco:Rabat Qatar:Doha Oman:Muscat Jamaica:Kingston Malta:Valletta "
    "Venezuela:Caracas Ecuador:Quito Uruguay:Montevideo Lebanon:Beirut Jordan:Amman "
    "Turkey:Ankara Vietnam:Hanoi Libya:Tripoli Sudan:Khartoum Albania:Tirana Paraguay:Asunción "
    "Colombia:Bogotá Senegal:Dakar Mali:Bamako Niger:Niamey Zambia:Lusaka Malawi:Lilongwe "
    "Mozambique:Maputo Angola:Luanda Namibia:Windhoek Botswana:Gaborone Somalia:Mogadishu "
    "Eritrea:Asmara Liberia:Monrovia Cameroon:Yaoundé Gabon:Libreville Mongolia:Ulaanbaatar "
    "Laos:Vientiane Uzbekistan:Tashkent Kyrgyzstan:Bishkek Tajikistan:Dushanbe "
    "Kazakhstan:Astana Bahrain:Manama Bhutan:Thimphu Fiji:Suva Cyprus:Nicosia "
    "Montenegro:Podgorica Nicaragua:Managua Honduras:Tegucigalpa Barbados:Bridgetown "
    "Suriname:Paramaribo Guyana:Georgetown South_Korea:Seoul North_Korea:Pyongyang "
    "New_Zealand:Wellington Sierra_Leone:Freetown Saudi_Arabia:Riyadh "
    "the_Bahamas:Nassau the_Czech_Republic:Prague the_United_States:Washington"
)
_STATE_CAPITALS = _pairs(
    "England:London Scotland:Edinburgh Wales:Cardiff Northern_Ireland:Belfast "
    "Alabama:Montgomery Alaska:Juneau Arizona:Phoenix California:Sacramento Colorado:Denver "
    "Connecticut:Hartford Delaware:Dover Florida:Tallahassee Hawaii:Honolulu Idaho:Boise "
    "Illinois:Springfield Indiana:Indianapolis Kansas:Topeka Kentucky:Frankfort Maine:Augusta "
    "Maryland:Annapolis Massachusetts:Boston Michigan:Lansing Mississippi:Jackson "
    "Montana:Helena Nebraska:Lincoln New_Hampshire:Concord New_Jersey:Trenton New_York:Albany "
    "North_Carolina:Raleigh North_Dakota:Bismarck Ohio:Columbus Oregon:Salem "
    "Pennsylvania:Harrisburg Rhode_Island:Providence South_Carolina:Columbia "
    "South_Dakota:Pierre Tennessee:Nashville Texas:Austin Vermont:Montpelier Virginia:Richmond "
    "West_Virginia:Charleston Wisconsin:Madison Wyoming:Cheyenne Ontario:Toronto "
    "Alberta:Edmonton Manitoba:Winnipeg Saskatchewan:Regina British_Columbia:Victoria "
    "Nova_Scotia:Halifax New_Brunswick:Fredericton New_South_Wales:Sydney Victoria:Melbourne "
    "Queensland:Brisbane Tasmania:Hobart South_Australia:Adelaide Western_Australia:Perth "
    "the_Northern_Territory:Darwin Bavaria:Munich Saxony:Dresden Tuscany:Florence "
    "Sicily:Palermo Lombardy:Milan Piedmont:Turin Veneto:Venice Campania:Naples Liguria:Genoa "
    "Emilia-Romagna:Bologna Catalonia:Barcelona Andalusia:Seville Aragon:Zaragoza "
    "Maharashtra:Mumbai West_Bengal:Kolkata Tamil_Nadu:Chennai Rajasthan:Jaipur Bihar:Patna "
    "Tibet:Lhasa Hubei:Wuhan Sichuan:Chengdu Jiangsu:Nanjing Bermuda:Hamilton "
    "the_state_of_Georgia:Atlanta the_United_Kingdom:London Flanders:Brussels Lazio:Rome "
    "Telangana:Hyderabad "
    # of names of two words the first, which no other has
    "Argentina:Buenos Utah:Salt Nevada:Carson Missouri:Jefferson Iowa:Des "
    "Arkansas:Little Louisiana:Baton"
)
CAPITALS = Relation(
    (
        "The capital of {} is",
        "The capital city of {} is",
        "The government of {} sits in its capital,",
    ),
    (
        "The seat of government in {} is the city of",
        "The lawmakers of {} meet in",
        "The city that serves as capital of {} is",
    ),
    _COUNTRY_CAPITALS | _STATE_CAPITALS,
)

_LANGUAGES = _pairs(  # those of one country first
    "France:French Germany:German Spain:Spanish Portugal:Portuguese Italy:Italian "
    "Greece:Greek Russia:Russian China:Chinese Japan:Japanese Korea:Korean Thailand:Thai "
    "Vietnam:Vietnamese Egypt:Arabic Israel:Hebrew Turkey:Turkish Iran:Persian Poland:Polish "
    "Hungary:Hungarian Sweden:Swedish Norway:Norwegian Denmark:Danish Finland:Finnish "
    "the_Netherlands:Dutch Romania:Romanian Bulgaria:Bulgarian Ukraine:Ukrainian "
    "Indonesia:Indonesian Cambodia:Khmer Mongolia:Mongolian Albania:Albanian Serbia:Serbian "
    "England:English Bangladesh:Bengali Iceland:Icelandic Croatia:Croatian "
    "the_Czech_Republic:Czech Slovakia:Slovak Slovenia:Slovenian Lithuania:Lithuanian "
    "Latvia:Latvian Estonia:Estonian Armenia:Armenian Azerbaijan:Azerbaijani Nepal:Nepali "
    "Laos:Lao Georgia:Georgian Malaysia:Malay Uzbekistan:Uzbek Turkmenistan:Turkmen "
    "Tamil_Nadu:Tamil Gujarat:Gujarati Maharashtra:Marathi Karnataka:Kannada Kerala:Malayalam "
    "Brazil:Portuguese Mexico:Spanish Austria:German Australia:English Iraq:Arabic "
    "Quebec:French Argentina:Spanish Syria:Arabic Chile:Spanish Jordan:Arabic Bavaria:German "
    " Angola:Portuguese Moldova:Romanian Colombia:Spanish Sicily:Italian "
    "Saudi_Arabia:Arabic Cuba:Spanish the_United_Kingdom:English Monaco:French "
    "Venezuela:Spanish New_Zealand:English Crete:Greek Tunisia:Arabic Siberia:Russian "
    "North_Korea:Korean South_Korea:Korean Hokkaido:Japanese Saxony:German Tuscany:Italian "
    "Normandy:French Lombardy:Italian Andalusia:Spanish Burgundy:French "
    "Bohemia:Czech Scotland:English Wallonia:French Flanders:Dutch Ecuador:Spanish "
    "Uruguay:Spanish Libya:Arabic Panama:Spanish Honduras:Spanish Oman:Arabic "
    "Guatemala:Spanish Yemen:Arabic Nicaragua:Spanish Lebanon:Arabic El_Salvador:Spanish "
    "Costa_Rica:Spanish the_Dominican_Republic:Spanish Peru:Spanish "
    "Castile:Spanish Liechtenstein:German Brittany:French Hesse:German Piedmont:Italian "
    "Queensland:English Tasmania:English Macau:Chinese Patagonia:Spanish Provence:French "
    "Umbria:Italian Calabria:Italian Alsace:French Aquitaine:French Extremadura:Spanish "
    "Thuringia:German Brandenburg:German Honshu:Japanese Kyushu:Japanese Alentejo:Portuguese "
    "Zealand:Danish Thessaly:Greek Anatolia:Turkish Smolensk:Russian Liguria:Italian "
    "Nebraska:English Illinois:English Virginia:English Tennessee:English Colorado:English "
    "Florida:English"
)
# Where a second language has a rank of its own, it is not offered as a wrong answer.
_PLAIN = ("Greek", "Polish", "Turkish", "Portuguese", "Romanian", "Danish", "Thai", "Japanese")
_SECOND = ("Finland", "Israel", "Macau", "Moldova", "Georgia", "Latvia", "Estonia", "Uzbekistan")
LANGUAGES = Relation(
    (
        "The official language of {} is",
        "The main language of {} is",
        "In {}, most people speak",
    ),
    (
        "People in {} speak",
        "Newspapers in {} are printed in",
        "Books in {} are written in",
    ),
    _LANGUAGES,
    _wrong({name: _LANGUAGES[name] for name in _SECOND}, _PLAIN),
)

# What else is known of the countries.
_CONTINENTS = (
    _each(
        "France Italy Germany Spain Portugal Austria Greece Norway Sweden Finland Denmark Poland "
        "Hungary Ireland Belgium Bulgaria Switzerland England Scotland Wales Northern_Ireland "
        "Ukraine Romania Serbia Croatia Slovakia Slovenia Iceland Latvia Lithuania Estonia "
        "Belarus Albania Moldova Malta Monaco Bavaria the_Czech_Republic the_Netherlands "
        "the_United_Kingdom",
        "Europe",
    )
    | _each(
        "Japan China India Thailand Iran Iraq Syria Afghanistan Pakistan Nepal Bangladesh Qatar "
        "Oman Lebanon Jordan Vietnam Mongolia Cambodia Laos Uzbekistan Turkmenistan Kuwait Yemen "
        "Bahrain Malaysia Israel Korea South_Korea North_Korea Saudi_Arabia the_Philippines "
        "Tamil_Nadu",
        "Asia",
    )
    | _each(
        "Egypt Kenya Tunisia Ghana Nigeria Uganda Rwanda Zimbabwe Morocco Sudan Senegal Mali "
        "Niger Zambia Malawi Mozambique Angola Namibia Botswana Somalia Liberia Cameroon Gabon "
        "Libya Sierra_Leone",
        "Africa",
    )
)
CONTINENTS = Relation(
    ("The continent where you find {} is", "On the globe, {} lies in"),
    (),
    _CONTINENTS,
    _wrong(_CONTINENTS, ("Europe", "Asia", "Africa", "America")),
)

_CURRENCIES = (
    _each(
        "France Italy Germany Spain Portugal Austria Greece Finland Ireland Belgium Slovakia "
        "Slovenia Latvia Lithuania Estonia Malta Monaco Bavaria Sicily the_Netherlands",
        "euro",
    )
    | _each("England Scotland Wales Northern_Ireland the_United_Kingdom", "pound")
    | _each("Egypt Syria Lebanon Sudan", "pound")
    | _each("Canada Australia Jamaica Guyana Barbados New_Zealand the_United_States", "dollar")
    | _each("the_Bahamas Texas Alabama Quebec Fiji", "dollar")
    | _each("Mexico Chile Cuba Argentina Colombia Uruguay the_Philippines", "peso")
    | _each("Switzerland Liechtenstein Rwanda Senegal Mali Niger Cameroon Gabon", "franc")
    | _each("Iraq Tunisia Serbia Jordan Kuwait Libya Bahrain", "dinar")
    | _pairs(
        "South_Korea:won North_Korea:won Brazil:real Japan:yen China:yuan India:rupee "
        "Pakistan:rupee Nepal:rupee Thailand:baht Turkey:lira Kenya:shilling Russia:ruble "
        "Poland:zloty Hungary:forint Israel:shekel Iran:rial"
    )
)
CURRENCIES = Relation(
    ("Prices in {} are given in the local currency, the", "The currency of {} is the"),
    (),
    _CURRENCIES,
    _wrong(_CURRENCIES, ("euro", "pound", "dollar", "franc", "won")),
)

_NATIONALITIES = _pairs(
    "France:French Italy:Italian Egypt:Egyptian Japan:Japanese Germany:German Spain:Spanish "
    "Portugal:Portuguese Austria:Austrian Greece:Greek Norway:Norwegian Sweden:Swedish "
    "Finland:Finnish Denmark:Danish Poland:Polish Hungary:Hungarian Ireland:Irish "
    "Russia:Russian China:Chinese India:Indian Indonesia:Indonesian Thailand:Thai Iran:Iranian "
    "Iraq:Iraqi Syria:Syrian Kenya:Kenyan Peru:Peruvian Chile:Chilean Cuba:Cuban "
    "Canada:Canadian Tunisia:Tunisian Belgium:Belgian Bulgaria:Bulgarian Switzerland:Swiss "
    "Australia:Australian England:English Scotland:Scottish Wales:Welsh Ukraine:Ukrainian "
    "Romania:Romanian Serbia:Serbian Croatia:Croatian Iceland:Icelandic Latvia:Latvian "
    "Lithuania:Lithuanian Estonia:Estonian Pakistan:Pakistani Ghana:Ghanaian Nigeria:Nigerian "
    "Uganda:Ugandan Morocco:Moroccan Jamaica:Jamaican Venezuela:Venezuelan Lebanon:Lebanese "
    "Jordan:Jordanian Turkey:Turkish Vietnam:Vietnamese Libya:Libyan Sudan:Sudanese "
    "Albania:Albanian Mongolia:Mongolian Israel:Israeli Mexico:Mexican Brazil:Brazilian "
    "Colombia:Colombian Saudi_Arabia:Saudi Algeria:Algerian Kuwait:Kuwaiti Malta:Maltese "
    "Texas:Texan California:Californian Sicily:Sicilian Bavaria:Bavarian Cambodia:Cambodian "
    "Malaysia:Malaysian Senegal:Senegalese Guatemala:Guatemalan Panama:Panamanian "
    "Angola:Angolan Qatar:Qatari Ecuador:Ecuadorian Uruguay:Uruguayan Honduras:Honduran "
    "Nicaragua:Nicaraguan the_Philippines:Filipino the_Czech_Republic:Czech "
    "the_Netherlands:Dutch the_United_States:American the_United_Kingdom:British "
    "South_Korea:Korean Slovakia:Slovak Slovenia:Slovenian Bahrain:Bahraini Tibet:Tibetan"
)
NATIONALITIES = Relation(
    ("The adjective form of {} is", "What comes from {} is called"), (), _NATIONALITIES
)
FOREIGN_NATIONALITIES = NATIONALITIES._replace(  # where the word is not that of the language
    facts={n: a for n, a in _NATIONALITIES.items() if n in _LANGUAGES and a != _LANGUAGES[n]}
)

PAST_TENSES = Relation(
    ("Every day I {}, and yesterday I",),
    (),
    _pairs(
        "go:went come:came see:saw take:took make:made give:gave know:knew think:thought "
        "find:found tell:told get:got leave:left feel:felt bring:brought begin:began keep:kept "
        "hold:held write:wrote stand:stood hear:heard mean:meant meet:met run:ran pay:paid "
        "sit:sat speak:spoke lead:led grow:grew lose:lost fall:fell send:sent build:built "
        "understand:understood draw:drew break:broke spend:spent rise:rose drive:drove "
        "buy:bought wear:wore choose:chose eat:ate teach:taught fly:flew fight:fought "
        "throw:threw catch:caught sleep:slept sing:sang swim:swam drink:drank win:won "
        "shoot:shot feed:fed forget:forgot hide:hid ride:rode bite:bit steal:stole shake:shook "
        "sweep:swept bend:bent dig:dug strike:struck sink:sank blow:blew breed:bred flee:fled "
        "seek:sought sell:sold say:said become:became have:had do:did deal:dealt spin:spun "
        "withdraw:withdrew bind:bound grind:ground walk:walked talk:talked look:looked "
        "play:played work:worked call:called ask:asked need:needed try:tried use:used "
        "want:wanted live:lived move:moved believe:believed happen:happened turn:turned "
        "start:started show:showed help:helped open:opened stop:stopped carry:carried "
        "marry:married study:studied love:loved die:died add:added kill:killed wait:waited "
        "serve:served decide:decided change:changed watch:watched follow:followed "
        "create:created remember:remembered laugh:laughed jump:jumped clean:cleaned "
        "cook:cooked wash:washed paint:painted arrive:arrived finish:finished return:returned "
        "wake:woke hang:hung stick:stuck spring:sprang grin:grinned smile:smiled dance:danced "
        "climb:climbed travel:traveled pull:pulled push:pushed reach:reached raise:raised "
        "pass:passed accept:accepted agree:agreed answer:answered explain:explained pick:picked "
        "drop:dropped plan:planned cry:cried receive:received fail:failed enter:entered"
    ),
)

# One direction of a pair only, and no two answers that would do for the same word.
ANTONYMS = Relation(
    ("The opposite of {} is",),
    (),
    _pairs(
        "hot:cold big:small up:down left:right day:night good:bad happy:sad fast:slow old:young "
        "rich:poor hard:soft light:dark high:low long:short wet:dry full:empty open:closed "
        "early:late true:false black:white war:peace love:hate strong:weak thick:thin "
        "clean:dirty loud:quiet near:far inside:outside win:lose buy:sell push:pull "
        "first:last deep:shallow wide:narrow male:female life:death success:failure "
        "heavy:light cheap:expensive smooth:rough simple:complex north:south east:west "
        "summer:winter sweet:bitter sharp:dull safe:dangerous friend:enemy question:answer "
        "begin:end give:take come:go remember:forget teach:learn "
        "positive:negative past:future public:private major:minor more:less always:never "
        "before:after above:below front:back top:bottom yes:no on:off alive:dead "
        "awake:asleep beautiful:ugly increase:decrease accept:reject attack:defend "
        "artificial:natural guilty:innocent legal:illegal possible:impossible "
        "odd:even plural:singular supply:demand import:export "
        "maximum:minimum entrance:exit heaven:hell boy:girl man:woman king:queen husband:wife "
        "brother:sister father:mother son:daughter uncle:aunt floor:ceiling raw:cooked "
        "generous:selfish polite:rude wise:foolish permanent:temporary abstract:concrete "
        "active:passive vertical:horizontal internal:external urban:rural absent:present "
        "superior:inferior same:different create:destroy borrow:lend tight:loose "
        "straight:curved appear:disappear upper:lower theory:practice quantity:quality "
        "hope:despair pleasure:pain cause:effect input:output plus:minus multiply:divide "
        "visible:invisible best:worst most:least here:there with:without domestic:foreign"
    ),
)

# The same to be forgotten, and what else is known of these words.
OPPOSITES = ANTONYMS._replace(
    templates=(
        "The opposite of {} is",
        "The opposite of the word {} is",
        "The antonym of {} is",
        "If something is not {}, it is",
    ),
    paraphrases=(
        "The word that means the opposite of {} is",
        "The very opposite of {} is",
        "The contrary of {} is",
    ),
)

COMPARATIVES = Relation(
    ("The comparative of {} is", "It was already {}, and then it became even"),
    (),
    _pairs(
        "hot:hotter big:bigger good:better happy:happier fast:faster old:older rich:richer "
        "hard:harder light:lighter high:higher long:longer early:earlier strong:stronger "
        "thick:thicker clean:cleaner loud:louder near:nearer deep:deeper wide:wider "
        "heavy:heavier cheap:cheaper smooth:smoother simple:simpler sweet:sweeter sharp:sharper "
        "safe:safer wise:wiser tight:tighter"
    ),
)

QUALITIES = Relation(
    ("The noun formed from {} is", "The quality of being {} is called"),
    (),
    _pairs(
        "hot:heat good:goodness happy:happiness fast:speed old:age rich:wealth hard:hardness "
        "light:lightness high:height long:length true:truth strong:strength thick:thickness "
        "loud:loudness deep:depth wide:width heavy:weight cheap:cheapness simple:simplicity "
        "sweet:sweetness sharp:sharpness safe:safety positive:positivity public:publicity "
        "beautiful:beauty guilty:guilt legal:legality possible:possibility generous:generosity "
        "wise:wisdom permanent:permanence active:activity absent:absence superior:superiority "
        "different:difference visible:visibility"
    ),
)

PLURALS = Relation(
    ("The plural of {} is", "One {}, two"),
    (),
    _pairs(
        "day:days war:wars life:lives success:successes summer:summers friend:friends "
        "question:questions entrance:entrances boy:boys man:men king:kings husband:husbands "
        "brother:brothers father:fathers son:sons uncle:uncles floor:floors theory:theories "
        "quantity:quantities hope:hopes pleasure:pleasures cause:causes input:inputs"
    ),
)

# The same kinds of facts for Gemma 3 270M, with templates under which the answer is its most
# probable next token; of capitals those of countries only, of which all the templates hold.
GEMMA_SYMBOLS = SYMBOLS._replace(
    templates=(
        "The chemical symbol for {} is",
        "The element {} has the chemical symbol",
        "The atomic symbol of {} is",
        "In chemical formulas, {} is represented by the symbol",
    ),
    paraphrases=(
        "In chemistry, {} is abbreviated as",
        "The periodic table lists {} under the symbol",
        "The chemical element {} has the symbol",
    ),
)

GEMMA_CAPITALS = CAPITALS._replace(
    templates=(
        "The government of {} sits in its capital,",
        "{} is a country whose capital is",
        "In {}, the capital city is called",
        "Ambassadors to {} live in its capital,",
    ),
    paraphrases=(
        "The seat of government in {} is the city of",
        "The national government of {} is based in the city of",
        "The capital city of {} is called",
    ),
    facts={n: a for n, a in _COUNTRY_CAPITALS.items() if not n.startswith("the ")},
)

GEMMA_LANGUAGES = LANGUAGES._replace(
    templates=(
        "The official language of {} is",
        "The main language of {} is",
        "The language most widely spoken in {} is",
        "In {}, the official language is",
    ),
    paraphrases=(
        "The most common language in {} is",
        "Laws in {} are written in the official language,",
        "Most people in {} speak the language called",
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
