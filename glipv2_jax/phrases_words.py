"""English words that `phrases` knows: closed classes whole, open classes as far as captions need them.

Written by hand for this project. A word in none of the lists is judged by its ending, and is a noun if that
says nothing; so the lists hold what is *not* a noun, or not always.
"""


def _words(text):
    return frozenset(text.split())


DETERMINERS = _words("""
    a an the this these those some any each every both all another either neither no several many most
    more few various numerous multiple half plenty enough his its their my your our whose whatever""")
NUMBERS = _words("""
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand
    million dozen""")
PRONOUNS = _words("""
    i you he she it we they me him us them myself yourself himself herself itself ourselves themselves
    who whom which what mine yours hers ours theirs there something anything everything nothing nobody
    none whoever""")
PREPOSITIONS = _words("""
    in on at by with from for to into onto over under through across near behind beside besides between
    among amongst around about above below beneath underneath against along alongside amid amidst atop
    inside outside within without toward towards up down off out past upon like unlike via during beyond
    throughout till until versus vs per despite except minus plus opposite aboard astride since than w/ w""")
# Words that start a clause of their own, with a verb of its own.
CLAUSES = _words("""
    while whilst as when where because if though although whereas after before so but how why whether""")
CONJUNCTIONS = _words("and or & nor +")
AUXILIARIES = _words("""
    is are was were be been being am has have had do does did can could will would shall should may might
    must ain isn aren wasn weren doesn don didn hasn haven hadn couldn wouldn shouldn won ca""")
# A plain verb form follows these: "can jump".
MODALS = _words("""
    to do does did can could will would shall should may might must don doesn didn couldn wouldn shouldn
    won ca lets let helps help makes make""")
ADVERBS = _words("""
    abroad afar again ago ahead airborne almost alone along aloud already also always anywhere apart
    aside away backward backwards downhill downstairs downtown downward downwards else elsewhere etc even
    ever everywhere far forward forwards hence here however indoors instead inward just later maybe
    mid-air mid-flight mid-jump mid-swing midair n nearby never not now o'clock often once only onward
    otherwise outdoors outward overhead perhaps please quite rather really sideways someplace sometimes
    somewhere soon still then therefore thus together too twice uphill upside upstairs upward upwards
    very well yet""")
# Nouns after a determiner, adjective or preposition, adverbs elsewhere: "on his back", "leans back".
NOUNS_OR_ADVERBS = _words("back home")
NOT_ADVERBS = _words("""
    family belly butterfly fly jelly lily bully assembly dolly trolley ply supply italy reply""")
LY_ADJECTIVES = _words("""
    elderly curly friendly ugly lovely lonely early silly daily hilly woolly bubbly wobbly cuddly frilly
    likely lively smelly chilly wooly burly motherly fatherly scholarly heavenly deadly oily scaly weekly""")

COLOURS = _words("""
    red orange yellow green blue purple violet pink brown black white gray grey beige tan maroon
    turquoise teal navy cyan magenta khaki crimson scarlet lavender burgundy silver gold golden
    multicolored camouflage multi-colored plaid lime indigo""")
ADJECTIVES = _words("""
    big large small little tiny huge giant gigantic tall short long wide narrow thick thin fat skinny
    slim deep high low old young new ancient modern elderly middle-aged teenage teen male female adult
    blond blonde brunette bald light dark bright pale pastel neon colorful colourful plain clear sheer
    dull shiny striped plaid other same different similar own main only whole entire next last first
    second third fourth fifth final upper lower left right middle outer inner front rear single double
    triple happy sad angry serious calm busy tired sleepy asleep awake alive dead dirty clean wet dry
    muddy dusty sandy rocky grassy snowy icy rainy sunny cloudy foggy windy stormy hazy hot cold warm
    cool fresh frozen hard soft rough smooth flat steep round square rectangular oval curly wavy straight
    empty full open loose tight heavy strong weak fast slow quick quiet loud noisy public private common
    local foreign native african asian american european indian chinese japanese mexican british french
    german italian spanish russian irish scottish arabic caucasian hispanic latino english australian
    canadian oriental urban rural overhead east west north south eastern western northern southern wild
    domestic indoor outdoor wooden metallic golden woolen brick leafy fuzzy fluffy furry hairy shaggy
    puffy bushy scruffy chubby pregnant barefoot naked nude shirtless topless barefooted sleeveless lone
    alone pretty cute handsome gorgeous nice good great bad best better fine fancy formal casual elegant
    tasty ripe raw sweet spicy fake real true ready able unable aware unaware available visible close
    nearby distant vertical horizontal parallel crazy funny strange weird odd unusual simple complex
    difficult easy free electric electronic electrical medical military professional traditional typical
    ethnic religious historic federal global national royal social musical magical tropical athletic
    acrobatic aquatic artistic plastic attentive active festive massive expensive protective reflective
    olive attractive inquisitive decorative few many such certain ornate intricate bare blank blind deaf
    drunk sick injured homeless unseen overweight underwater portable vintage antique retro worn broken
    torn bent upright shut lush dense sparse shallow hollow solid transparent opaque crowded joyful
    intent intense content taller shorter bigger larger smaller older younger longer higher darker
    lighter closer fellow fun extra additional spare partial semi afloat ablaze adrift ajar ahead
    attached adjacent bridal nuclear circular triangular tubular muscular spectacular popular regular
    singular particular solo silent absent present patient excellent recent innocent lit unlit overgrown
    grown outstretched topmost bottom sole overcast lavish alert anxious smug proud eager curious mad
    worried scared afraid sure sorry glad""")
# Adjectives that are as often nouns where none follows: "traffic light".
NOUNS_AS_ADJECTIVES = _words("""
    light orange square plastic gold silver double dark shade top bottom adult male female""")
# With a verb form behind them these are alone: "one walks", "another watches".
STANDALONE_ONE = _words("one another each other")
STANDALONE_MANY = _words("some both all two three many most several few")
NOUNS_IN_ING = _words("""
    building buildings clothing railing ceiling painting wedding evening morning ring string swing wing
    king sling spring thing sibling duckling pudding lightning awning scaffolding bedding flooring
    earring setting opening clearing crossing crosswalk drawing meeting lettering netting icing frosting
    stocking stuffing dressing siding rigging gathering landing
    outing offspring viking darling seedling sterling inning peking beijing fencing lighting parking
    marking carving ping sting ling bling wiring shelving being beings writing seating plumbing""")
# Before a noun these name its purpose even without a determiner: "with fishing poles".
PURPOSES = _words("""
    fishing bowling shopping sewing swimming living steering marching dining racing cutting camping
    sleeping washing bathing cooking baking boxing wrestling skiing skating ironing rocking parking
    diving hiking hunting welding frying rolling wading knitting vending measuring chopping mixing
    landing surfing training waiting""")
# Before a noun these describe it even without a determiner: "with smiling faces".
PARTICIPLES = _words("""
    smiling laughing matching surrounding falling flowing oncoming passing running crashing breaking
    blooming flying flashing burning glowing shining sparkling floating growing hanging grazing melting
    neighboring balding opposing competing existing rolling rushing setting rising swirling towering
    dangling incoming coordinating contrasting varying working""")
# Between two nouns: "snow covered mountain".
COMPOUND_PARTICIPLES = _words("""
    covered lined filled shaped colored coloured haired sleeved themed clad made topped sized decorated
    painted patterned looking faced roofed walled stained striped collared footed legged headed powered
    drawn rimmed wheeled eyed skinned tipped edged trimmed checkered checked laden style old""")
NOUNS_IN_ED = _words("""
    bed beds shed sled seed weed speed breed reed feed steed bobsled watershed flatbed tweed biped moped
    creed deed need ted thoroughbred hundred""")

# Plain forms of verbs that name nothing in a picture.
VERBS = _words("""
    adjust admire advertise aim amuse appear apply approach argue arrange arrive ascend ask assemble
    assist attach attempt attend await bathe become begin belong bicker blend blow brace breathe bring
    browse build buy calm capture carve celebrate choke choose clap clear cling clutch collect come
    comfort communicate compare compete complete concentrate conduct confront connect consider consist
    consult contain contemplate continue converse cradle create crochet cruise cuddle curl dangle
    decide decorate deliver demonstrate depict descend describe die dip direct discover discuss disembark
    dismount distribute dodge drape dribble drip drool eat educate embrace emerge empty
    encourage engage enjoy ensure enter entertain erect escape evaluate examine exchange 
    explain explore express extend extinguish fade fasten feature feed fill find flap flee flirt follow
    freeze frolic gallop gather get giggle give glide go grab greet grin guide handle hang
    happen harvest hear help hitch hover huddle hunch hurdle hurl illuminate imagine imitate include
    indicate inflate inhale insert inspect install instruct interact introduce investigate involve itch
    join keep kneel knit know lay lean learn let lie listen live lock love lower lurk maintain
    make manage maneuver manipulate marvel meditate meet mend mingle monitor mourn mow munch narrate
    navigate need negotiate nibble nod observe obtain occur operate oppose outrun overlook own
    participate peddle peer perch persuade pick pluck poke polish ponder pop possess pray preach 
    prepare pretend prevent proceed produce prop propel propose protect prove provide purchase pursue put
    quarrel quilt raise rappel reach react read receive recite recline reflect refuse rehearse relate
    relax relish rely remain remember remind remove represent rescue resemble respond restock restrain
    retrieve reveal rinse roam roast salute say scale scan scatter scoop scrape scratch scrub
    sculpt scurry secure see seek seem select sell send separate settle shake shatter shear shine shred
    shuffle sift sing sink sit skid skim skip slam slap slurp smash snap sneak sniff snooze
    snorkel snuggle soak soar socialize solve speak spell spend spit sprawl spread sprinkle squeeze
    squint startle stay steady steer stir stoop strain stumble submerge suck suggest sunbathe
    supervise surprise surround survey suspend swallow swarm swat sway swerve swoop take taunt teach
    tease tell tend thank think thread thrust tighten tilt tiptoe transport traverse
    trim trudge try tumble twirl undergo understand unfold unload unravel unwrap use utilize vault
    venture vie wade wag wander want warn wear weed weigh weld whistle whittle wield wiggle wipe wonder
     worship write yank yell zoom""")
# Plain forms that are as often the name of a thing or an act: only the words around them tell.
VERBS_OR_NOUNS = _words("""
    balance bargain bark battle beat bend bike bite block bounce bow bowl break brush buck burn call camp
    carry cast catch chase chat check cheer chew chop clean climb coach comb control cook cover crack
    crane crash crawl cross crouch crowd cry cut dance dash dig dinner display dive drag draw dream dress
    drift drill drink drive drop drum dunk dust end exercise exit face fall farm feast fence fight film
    finish fish fix flip float fly focus fry gaze gesture glance grasp grill grind grip groom group guard
    hammer haul herd hike hit hold hop hug hunt hurry jest jog joke juggle jump kayak kick kiss knot
    lasso laugh launch lead leap leash leave lick lift light load look lounge lunch march mark market
    milk mix mop mount move nail nap offer paddle paint parade park pass patch pedal peek peel perform
    pet phone photograph picture pile pin pitch place plan plant play plow plunge point pose pour present
    press protest pull punch push race raft rake record reel release repair rest return ride ring rise
    rock roll rope row rub run rush sail sale sand saw score scream search serve set shape share shave
    shield shoot shop shot shout shovel show sign signal sip skate skateboard sketch ski sled sleep slice
    slide slip smell smile smirk smoke snack sneeze snow snowboard somersault sort space spear speech
    spin splash spot spray sprint squat stack stand stare start step stick stop strap stretch strike
    stroke stroll struggle strum study support surf sweep swim swing tackle talk tap taste test text
    throw tie toast toss touch tour tow trail train travel trek trick trip trot tug turn twist type
    vacuum view visit wait walk wash watch water wave weave wheelchair whisper work wrap wreck wrestle
    yawn""")
# -s forms that stay nouns behind a bare noun: "with hockey sticks"; others are verbs: "in sunlight looks".
PLURALS_FIRST = _words("""
    sticks bikes boxes bats balls bowls drums ropes nails signs skates skis boards sails hands heads
    faces arms eyes shoulders lines points pictures films photos drinks poles leaves tricks trips rocks
    bars stamps shots brushes combs colors frames blocks leashes snacks lights cranes spaces covers wraps
    papers styles costumes stalls groups crowds rackets stacks piles texts phones numbers names markets
    trains guards coaches parks plants games rings bows plows farms crosses ties slices sweets ramps""")
# Transitive verbs that never describe what follows: "male wearing eyeglasses".
VERBAL = _words("""
    wearing holding carrying using doing having getting taking making putting watching pulling pushing
    being giving eating showing pointing throwing trying catching kicking hitting enjoying facing
    preparing performing touching reading building talking sitting staring listening""")
# Adjectives that name a person where no noun follows.
PEOPLE = _words("male female adult blond blonde brunette teen caucasian african-american asian")
IRREGULAR_PASTS = _words("""
    sat stood held wore ate took made gave went came put ran swam threw caught hit rode drove flew fell
    lay laid led got began became brought built bought sold said told saw seen shown done taken given
    thrown ridden driven eaten written wrote hung hidden spread swung spun stuck struck sang sung slept
    knelt leapt lent bent dug fed fought found grew heard kept knew known leant met paid read rose sent
    shook shot sought spent split stole swept taught thought wept won blew blown drew drawn bitten beaten
    forgotten fallen frozen stolen chosen woven sewn hewn risen sunken shaven unshaven""")
PLURALS = _words("""
    men women children people others police folk youth fishermen policemen firemen cattle sheep geese""")

# In a place of the picture, not things in it; no box fits them.
NOWHERE = _words("""
    left right background foreground distance front rear backdrop midair air mid-air way time moment same
    while opposite ahead fun lot bit center""")
PICTURES = _words("""
    photo photograph picture image view shot close-up closeup snapshot pic""")
# What may stand before "a photo of" at the start of a caption.
INTRODUCTIONS = _words("this that it is 's there here we see i in a an the , : from")
SHOWING = _words("of showing shows depicting depicts featuring")

# Words that belong together, and the letters of `phrases` for them.
IDIOMS = {tuple(words.split()): tags for tags, idioms in {
    "PPP": "in front of, on top of, in order to",
    "PP": "out of, off of, outside of, inside of, because of, instead of, ahead of, left of, right of, "
          "next to, close to, such as, in between, all over, all around, along with, due to, according to",
    "XX": "each other, one another, no one",
    "RRRR": "at the same time",
    "RRR": "in a row, hand in hand",
    "RR": "as well, at least, at all, of course, by side, at night, at work, for fun, in unison, in order, "
          "a lot, in motion, for sale, upside down, in action, on display, at once, in progress, for example",
    "RRP": "as well as", "RP": "side by", "PR": "up close", "XP": "each of", "RX": "so that",
    "VP": "full of, made of", "DNO": "a lot of", "NN": "close up", "PDJ": "on the other", "OD": "of all",
    "NO": "kind of",
}.items() for words in idioms.split(", ")}
