"""Words for the slots of ``templates.py``, which ``prompts.py`` fills. All were written for this
project. People and events are invented; well-known names of firms, teams and places occur as words
only.

``WORDS[slot]`` is a list of choices separated by ``|``. A choice may hold further slots in braces.
"""

from __future__ import annotations

__all__ = ["WORDS"]

_RAW = {
    "first": (
        "James|Maria|David|Sarah|Ahmed|Linda|Robert|Elena|Michael|Priya|Daniel|Fatima|Thomas|Grace|Kevin|Olivia|"
        "Carlos|Emma|Wei|Hannah|Omar|Lucy|Peter|Amina|George|Chloe|Ivan|Rachel|Samuel|Yuki|Patrick|Nadia|Brian|"
        "Sofia|Mark|Julie|Andre|Kate|Luis|Megan|Stephen|Leila|Paul|Anna|Marcus|Jessica|Tariq|Diane|Simon|Bethany|"
        "Victor|Karen|Joseph|Natalie|Hassan|Claire"
    ),
    "last": (
        "Smith|Okafor|Garcia|Johnson|Patel|Williams|Kowalski|Brown|Nguyen|Taylor|Haddad|Wilson|Petrov|Evans|Kim|"
        "Davies|Silva|Murphy|Chen|Roberts|Lopez|Clark|Yamamoto|Lewis|Rossi|Walker|Khan|Hall|Mueller|Young|"
        "Fernandez|King|Ivanova|Wright|Mensah|Scott|Larsen|Green|Ali|Baker|Dubois|Adams|Novak|Mitchell|Santos|"
        "Turner|O'Brien|Campbell|Singh|Parker|Fischer|Collins"
    ),
    "name": "{first} {last}|{first} {last}|{first} {last}|Dr. {first} {last}|{first} {letter}. {last}",
    "letter": "A|B|C|D|E|G|H|J|K|L|M|R|S|T|W",
    "city": (
        "London|New York|Chicago|Paris|Los Angeles|Cairo|Sydney|Tokyo|Manchester|Houston|Berlin|Nairobi|Toronto|"
        "Mumbai|Glasgow|Atlanta|Madrid|Beijing|Boston|Lagos|Liverpool|Miami|Rome|Moscow|Seattle|Leeds|Dallas|"
        "Dublin|Jakarta|Denver|Istanbul|Bristol|Phoenix|Baghdad|Philadelphia|Melbourne|Birmingham|San Francisco|"
        "Kabul|Detroit|Cardiff|Mexico City|Portland|Johannesburg|Austin|Seoul|Brighton|New Orleans|Athens|"
        "Karachi|Las Vegas|Edinburgh|Baltimore|Warsaw|Washington|Manila|Oslo|Lima|Damascus"
    ),
    "country": (
        "the United States|Britain|France|China|Russia|India|Germany|Iran|Syria|Brazil|Nigeria|Japan|Australia|"
        "Mexico|Egypt|Pakistan|Kenya|Spain|Turkey|Canada|Ukraine|Israel|South Africa|Italy|Iraq|North Korea|"
        "Greece|Afghanistan|Poland|Yemen|Indonesia|Argentina|Somalia|the Netherlands|Thailand|Saudi Arabia|"
        "Sweden|Libya|Nepal|Colombia|Ireland|Portugal|Vietnam"
    ),
    "state": (
        "California|Texas|Florida|Ohio|New York|Illinois|Georgia|Pennsylvania|Michigan|Virginia|Washington|"
        "Arizona|Colorado|Tennessee|Missouri|Oregon|Alabama|Nevada|Kentucky|Utah|Kansas|Iowa|Maine|Montana|"
        "South Carolina|Massachusetts|Indiana"
    ),
    "county": (
        "Essex|Kent|Yorkshire|Lancashire|Devon|Surrey|Cornwall|Norfolk|Dorset|Somerset|Cheshire|West Midlands|"
        "Hampshire|Suffolk"
    ),
    "month": "January|February|March|April|May|June|July|August|September|October|November|December",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "agency": "Reuters|AP|AFP|CNN|Reuters|BBC",
    "team": (
        "Arsenal|Chelsea|Manchester United|Liverpool|Barcelona|Real Madrid|Everton|Tottenham|Manchester City|"
        "Newcastle|West Ham|the Yankees|the Lakers|the Cowboys|the Red Sox|the Bulls|Juventus|Bayern Munich|"
        "Celtic|Aston Villa|Southampton|the Patriots"
    ),
    "sport": (
        "football|tennis|cricket|rugby|boxing|golf|basketball|cycling|Formula One|swimming|athletics|baseball|"
        "horse racing|hockey"
    ),
    "firm": (
        "Northline|Corvex|Halden Group|BrightPath|Meridian Foods|Oakwell Bank|Apple|Google|Facebook|Twitter|"
        "Amazon|Tesco|Toyota|Samsung|Microsoft|Ferrow Energy|Walmart|Sable Air|Boeing|Uber|Vantage Health|"
        "Lumen Motors|Ridgeway Homes|Netflix|Tesla"
    ),
    "role": (
        "nurse|teacher|police officer|firefighter|student|mother of three|father of two|grandmother|lawyer|pilot|"
        "shopkeeper|farmer|taxi driver|soldier|doctor|pensioner|chef|builder|model|singer|actor|reality TV star|"
        "politician|bus driver|scientist|photographer|businessman|waitress|headteacher|schoolgirl|schoolboy|"
        "bride-to-be|fisherman|priest|engineer|journalist|widow"
    ),
    "official": (
        "President|Prime Minister|Foreign Secretary|Senator|Governor|Mayor|Health Secretary|Chancellor|"
        "Attorney General|Defense Secretary|Judge|Congressman|police chief|sheriff|spokesman|Secretary of State|"
        "Education Minister|coroner|inspector"
    ),
    "body": (
        "police|officials|prosecutors|the government|the Supreme Court|the United Nations|the White House|"
        "rescuers|doctors|lawmakers|scientists|researchers|the FBI|campaigners|the council|the military|"
        "regulators|investigators|the school board|NASA|the Metropolitan Police|the World Health Organization|"
        "Congress|the European Union|firefighters|the coast guard|residents"
    ),
    "n": (
        "two|three|four|five|six|seven|eight|nine|ten|12|15|18|20|24|30|45|60|100|dozens of|more than 50|"
        "hundreds of|at least 17"
    ),
    "money": (
        "${num}|${num} million|£{num}|£{num},000|${num} billion|€{num} million|£{num} million|${num},000"
    ),
    "num": "2|3|5|7|8|10|12|15|19|25|27|30|35|40|48|50|64|75|80|95|100|120|150|200|250|300|450|500|750|900",
    "age": (
        "6|9|11|14|16|17|18|19|21|22|23|24|26|27|28|29|31|32|33|34|36|38|39|41|43|45|47|49|52|55|58|61|64|68|72|"
        "77|83|91"
    ),
    "year": (
        "1776|1845|1898|1912|1929|1945|1959|1968|1974|1981|1987|1992|1996|1999|2001|2003|2005|2007|2008|2009|"
        "2010|2011|2012|2013|2014|2015|2016|2017|2018|2019|2020|2021"
    ),
    "place": (
        "a supermarket|a hospital|a school|a hotel|a nightclub|an airport|a beach|a car park|a prison|a church|"
        "a stadium|a farm|a motorway|a train station|a university campus|a shopping mall|a nursing home|"
        "a courtroom|a national park|a housing estate|a military base|a restaurant|a zoo|a cruise ship|"
        "a construction site|a river|the home of a {role}|a petrol station"
    ),
    "happening": (
        "was arrested after a fight outside {place}|has been jailed for {num} months|"
        "was killed when a car hit {place}|won {money} in a legal battle with {firm}|"
        "has been found alive after {n} days|gave birth to triplets in {place}|"
        "was rescued from {place} after a flood|has spoken out about losing {num} pounds|"
        "was attacked by a dog near {place}|has admitted stealing {money} from {place}|"
        "has become an internet sensation|was shot dead outside {place}|denied murdering a {role} in {city}|"
        "has broken a world record in {sport}|quit as {official} after a row over {issue}|"
        "is suing {firm} for {money}|was banned from {place} because of {issue}|"
        "was seen for the first time since {issue}|died after falling at {place}|"
        "has signed a new contract with {team}|revealed that {issue} had cost {money}|pleaded guilty to fraud|"
        "was left with severe burns|has sparked outrage with a photograph of {place}|"
        "faces up to {num} years in prison"
    ),
    "issue": (
        "immigration|a leaked email|climate change|a new tax|gun control|the cost of childcare|health care|"
        "a nuclear deal|food safety|the minimum wage|an outbreak of measles|a hacking scandal|school meals|"
        "plans for a wind farm|the Ebola epidemic|fuel prices|a power cut|a missing passenger jet|drone strikes|"
        "same-sex marriage|a divorce|religious freedom|animal cruelty|a data breach|the election result|doping|"
        "an earthquake|a bus crash|a train derailment|a wildfire|binge drinking|a housing shortage|plastic waste"
    ),
    "verb": (
        "warned of|voted to investigate|are divided over|announced new rules on|promised to act on|"
        "were criticised over|launched an inquiry into|struggled to contain|defended their handling of|"
        "released new figures on|called for an end to"
    ),
    "feeling": (
        "relieved|devastated|furious|proud|'absolutely heartbroken'|delighted|shocked|confident|'over the moon'|"
        "frightened|ashamed"
    ),
    "topic": (
        "{issue}|the history of {country}|home brewing|solar power|personal finance|photosynthesis|"
        "the Roman Empire|machine learning|raising chickens|jazz music|black holes|the French Revolution|"
        "pregnancy|digital marketing|coffee|yoga|used cars|wedding planning|real estate|running shoes|gardening|"
        "dog training|travel in {country}|insurance|vaccines|world religions|chess|volcanoes|remote work|"
        "mental health|dental care|knitting|cybersecurity|the stock market|kitchen design|hiking|wine|"
        "electric cars|antibiotics|dinosaurs|small business loans|woodworking|parenting|video games|skin care|"
        "bird watching|the Cold War|3D printing|poetry|sleep"
    ),
    "product": (
        "wireless headphones|leather boots|office chair|blender|mountain bike|LED desk lamp|phone case|"
        "cotton dress|yoga mat|stainless steel water bottle|hiking backpack|air purifier|gas grill|baby stroller|"
        "laptop stand|coffee maker|garden hose|electric toothbrush|wool blanket|cordless drill|cat tree|"
        "silver necklace|protein powder|memory foam mattress|dash cam|tent"
    ),
    "dish": (
        "chicken curry|banana bread|lentil soup|chocolate chip cookies|beef stew|roasted vegetables|pancakes|"
        "apple pie|fish tacos|vegan lasagna|fried rice|potato salad|lemon cake|chili|pumpkin muffins|"
        "mushroom risotto|shrimp pasta|hummus|granola|meatballs"
    ),
    "thing": (
        "bicycle|garden|laptop|kitchen|website|camera|resume|budget|guitar|fish tank|car battery|leaking tap|"
        "wardrobe|blog|deck|lawn"
    ),
    "subject": (
        "biology|algebra|world history|physics|economics|geography|chemistry|English literature|computer science|"
        "philosophy|music"
    ),
    "animal": (
        "wolf|elephant|fox|owl|dragon|rabbit|bear|cat|horse|tortoise|crow|dog|lion|mouse|whale|bee|penguin|snake|"
        "tiger|deer"
    ),
    "setting": (
        "a small village by the sea|an old lighthouse|a crowded city|a space station|a deep growing|a quiet farm|"
        "an abandoned house|a mountain pass|a train at night|a desert town|a castle|a boarding school|an island|"
        "a bakery|a library|a harbour|a circus tent"
    ),
    "field": (
        "a species of flowering plant|a village in {country}|an American {job}|a British {job}|a {sport} player|"
        "a railway station in {city}|a river in {country}|a 1970s rock band from {city}|a novel by {name}|"
        "a chemical compound|a medieval castle|a species of beetle|an Indian film|a museum in {city}|"
        "a former {official}|a township in {state}|a warship|a school of thought in {subject}|a video game|"
        "a constellation|a language spoken in {country}|a type of bridge|a disease of the {organ}|"
        "a public park in {city}"
    ),
    "job": (
        "painter|physicist|composer|actress|novelist|botanist|architect|general|economist|footballer|poet|"
        "mathematician|inventor"
    ),
    "organ": "heart|liver|skin|lungs|kidneys|eyes|brain|bones|stomach|blood|nerves|thyroid",
    "program": (
        "reverses a string|sorts a list of numbers|checks whether a word is a palindrome|computes prime numbers|"
        "parses a CSV file|counts words in a text file|finds the shortest path in a graph|"
        "implements a binary search tree|downloads a web page|converts Celsius to Fahrenheit|"
        "validates an email address|merges two sorted arrays|simulates a bank account|draws a maze|"
        "solves the Tower of Hanoi|generates random passwords|reads JSON and prints a table|"
        "implements a queue with two stacks"
    ),
    "language": "Python|Python|Python|JavaScript|Java|C++|C|Rust|SQL|Go|HTML|Bash",
    "tongue": "German|French|Spanish|Italian|Chinese|Japanese|Portuguese|Russian|Dutch",
    "adjective": (
        "simple|complete|easy|cheap|modern|beginner's|practical|delicious|quick|honest|surprising|professional|"
        "healthy|stylish"
    ),
    "sentence": (
        "The {animal} lives near {place}.|{name} {happening}.|People in {city} are talking about {issue}.|"
        "The price of {topic} rose by {num} per cent in {year}.|"
        "I have been looking for a {product} since {month}.|{firm} will open a new office in {city} next year.|"
        "The weather in {country} was cold in {month}."
    ),
}

WORDS: dict[str, list[str]] = {slot: choices.split("|") for slot, choices in _RAW.items()}
