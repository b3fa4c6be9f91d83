//! The words of party codes: common, short, easy to say and to type. Sorted. No two have their first four letters in common, and no two
//! differ by one letter only, so a slip is noticed and whoever types four letters has typed the word.

/// 1024 words, 10 bits each.
pub(super) const WORDS: &str = "\
    able acid acorn actor adobe after agent agile alarm album alert alley almond alpha amber anchor angle apple apron
    arch arena argue armor arrow artist ashes aspen atlas attic audio aunt autumn avenue award axis bacon badge bagel
    baker balcony bamboo banana banjo banner bargain barley barn basil basket bath beach beard beast beaver bedroom
    beetle bell berry bicycle bird biscuit bison blanket blaze blend blimp block bloom blue blush boat body boiler
    bonfire book border bottle boulder bounce bowl boxer brain branch brass bread breeze brick bridge bright brother
    brown bubble bucket budget buffalo bugle bumper bundle burger bus butter buyer buzzer cabin cactus cage camel
    canal candle canoe canvas canyon captain caravan carbon cargo carpet carrot castle catalog cedar celery cellar
    cement census chain chalk chapel charm cheese cherry chess chicken chimney chisel choir chorus cider cinema
    circle citrus city clap clerk clever cliff clinic cloak cloud clown club coach coast cobalt cobra cocoa coffee
    coin comet compass concert copper coral corner cosmic cotton cousin cover cowboy crab cradle crane crater crayon
    creek cricket crisp crow cruise crumb crystal cube cuckoo cumin curtain cushion custom cycle cymbal daisy dance
    daring dawn debate decade decimal deer delta denim dentist depot desert desk detail diagram diamond diary diesel
    dinner disco dish ditch diver dizzy doctor dollar dolphin domino donkey door double dough dove dozen dragon
    drawer dream dress drift drill drink drum duck dune dust dwarf eagle early earth easel echo eclipse edge editor
    eight elbow elder elegant elm emerald empty enamel energy engine enjoy entry envelope epic equal errand escort
    essay estate eternal evening exact example exit expert extra eyebrow fabric face factory fairy falcon family
    fancy farmer fashion father faucet felt fence fern festival fever fiber fiction fiddle field fifty figure film
    final finch finger fire flag flame flannel flavor fleet flint floor flower flute foam focus fog folder folk
    forest fossil freckle freight fresh friend fringe frost fruit funnel furnace future gadget galaxy gallery gamma
    garage garden garlic gate gazelle gear gecko gentle geyser giant giraffe glacier glass glider globe glory gold
    gondola goose gorilla gospel grape gravel green grid grocer group grove guard guest guitar gull gusto habit hail
    half hammer hamster harbor harvest hat hawk hazel header heart heavy helmet herb hermit hexagon hiccup highway
    hill hinge hippo history hobby hockey holiday hollow honey hood horizon horn hospital hotel hour house human
    humble hundred hunter hurdle hyena hymn iceberg icicle icon idea igloo image impact inbox index indigo infant ink
    inlet insect inside invent iris island item ivory ivy jacket jade jaguar jam january jasmine jazz jelly jersey
    jetty jewel jigsaw joker journal judge juggle juice july jumbo junior kayak kennel ketchup kettle keyboard kidney
    kimono king kiosk kitchen kite kitten kiwi knee knife koala label ladder lagoon lake lamp language lantern laptop
    large laser lattice laundry lava leaf leather lecture ledger legend lemon lens leopard lesson letter library
    license lilac lime linen lion liquid list lizard llama lobster local locket logic lotus lounge lucky lumber lunar
    lunch lynx lyric machine magnet major mammal mango mansion maple marble margin market mask master match maze
    meadow medal melody member memory menu mercury merit mesh meteor metro midnight milk mineral minute mirror mixer
    mobile model module moment monday month moon morning mosaic moss motor mountain movie muffin mule muscle museum
    mushroom music mustard mystery myth name napkin nation nature navy nebula necklace nectar needle nephew nest
    network neutral news nickel niece nimble ninety noble noise nomad noodle north notebook novel nurse nutmeg nylon
    oak oasis object oboe ocean octagon octopus office oil olive omelet onion onyx opal open opera optic orange orbit
    orchard oregano organ origami osprey ostrich otter owner oxygen oyster ozone pacific paddle painter palace palm
    pancake panda panel panther paper parade parcel parent party pasta patrol pavement peanut pearl pebble pelican
    pencil penguin people pepper perch perfume person petal phone photo phrase piano picnic pigeon pilgrim pillow
    pilot pine pioneer pirate pizza plain planet plaza plenty plum poem polar pollen polo pond popcorn port possum
    potato pottery powder prairie pretzel prince prism prize profit promise prune public pudding pulley pulse pumpkin
    pupil puppet purple puzzle pyramid python quail quartz queen quick quiet quill quiver quota rabbit raccoon radar
    radio raft raisin rally random rapid raven razor rebel recipe record reef refund region relay remote rental
    report rescue result review reward rhino rhythm ribbon rice ripple ritual road robin robot rodeo roller romance
    roof rooster rose round royal rubber ruby ruler runner rural rustic safari saga sailor salad salmon salt sample
    sand sapphire satin saturn sauce sausage scale scarf scene school science scooter scout screen script scuba
    sculptor season second secret seed segment senior sequel serial seven shadow shallow shark sheep shelf sheriff
    shield shine ship shirt shoe shovel shrimp shrub side signal silence silver siren sister sketch skunk sky slate
    sleeve slice slogan slope small smile smoke smooth snack snail snow soap social sock sofa soldier solid sonar
    song sonnet source south space speaker spider spinach spiral spoon spring sprout spruce square squid stable
    stadium star station steam stereo stick stone stool storm strap street student subway sugar suit summer sunset
    super surf swamp swan sweater swift swing switch symbol syrup system tackle tactic talent tank tape target tavern
    taxi teacher teapot temple tennis tent terrace textile theater theory thimble thirty thistle thread throne thumb
    thunder ticket tiger tile timber tinsel tiny tissue titan today token tomato tonic topaz torch tornado tortoise
    total toucan tower town toy track trade traffic trapeze tray treasure tree trend triangle tribe trio trophy trout
    truffle trumpet trunk tuba tulip turbine turkey turnip turtle tutor twelve twenty twig ultra umbrella umpire
    uncle under unicorn unique unit upper urban urgent usher utensil vacuum valve vanilla vapor vase vault vector
    velvet vendor venture verse vessel veteran victory video view village violin virtue visa visitor vital vivid
    volcano volume voyage vulture waffle wagon waist walnut walrus waltz wander warm wasp water wave wedding weekend
    whale wheat wheel whisper white wick wild window winter wisdom wolf wool word worker wreath wrench writer yard
    yellow yeti yoga yogurt young zebra zenith zero zigzag zinc zipper zodiac zombie zoo";
